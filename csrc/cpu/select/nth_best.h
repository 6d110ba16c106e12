// Exact selection on lists of one query's entries: the m-th best by ranking.h's order, and what survives it.
// No sort: a sampled bracket, one counting pass, and again on what is inside it.
#pragma once
#include "../../bracket.h"
#include "../simd/simd.h"

namespace cpr {
namespace CPR_ISA_NAMESPACE {

constexpr int64_t SMALL = 48;  // ranked by comparing all with all
constexpr int SAMPLED = 32;    // sampled for a bracket: sorting more costs more than it narrows

// Entries of one query: `rows` score rows and the entries' indices. Room for `capacity` and W more.
struct List {
  float* scores;
  int32_t* index;
  int64_t capacity;
  int64_t n;
  float* row(int r) const { return scores + r * (capacity + W); }
  static int64_t bytes(int rows, int64_t capacity) { return (rows + 1) * (capacity + W) * 4; }
};

inline List list_at(char* memory, int rows, int64_t capacity) {
  float* scores = reinterpret_cast<float*>(memory);
  return {scores, reinterpret_cast<int32_t*>(scores + rows * (capacity + W)), capacity, 0};
}

inline Cut cut_nothing() { return {__builtin_nanf(""), -1}; }           // no entry is within
inline Cut cut_everything() { return {-__builtin_inff(), INT32_MAX}; }  // every entry is within

inline Mask within(F score, I index, Cut cut) {
  return gt(score, set1(cut.score)) | (eq(score, set1(cut.score)) & le(index, set1(cut.index)));
}

// Whether the cut takes all or none of the entries at its score, so that indices need not be read.
inline bool by_score(Cut cut) { return cut.index == INT32_MAX || cut.score != cut.score; }

// `within` for entries at `index`, read only where the cut needs it.
template <bool BY_SCORE>
inline Mask within(F score, const int32_t* index, Cut cut) {
  if (BY_SCORE) return ge(score, set1(cut.score));
  return within(score, load(index), cut);
}

// step(i, lanes) for vectors of n entries: all lanes, but for those beyond the end.
template <class Step>
inline __attribute__((always_inline)) void for_vectors(int64_t n, Step step) {
  int64_t i = 0;
  for (; i + W <= n; i += W) step(i, ALL);
  if (i < n) step(i, first_lanes(n - i));
}

// `lanes` without those where one of `rows` scores is NaN; one comparison looks at two.
template <class Score>
inline __attribute__((always_inline)) Mask without_nan(Mask lanes, int rows, Score score) {
  for (int r = 0; r < rows; r += 2)
    lanes = static_cast<Mask>(lanes & ~unordered(score(r), score(r + 1 < rows ? r + 1 : r)));
  return lanes;
}

// ranks[i]: how many of the n <= SMALL + W entries rank before entry i.
inline void rank_all(const float* scores, const int32_t* index, int64_t n, int32_t* ranks) {
  for (int64_t i = 0; i < n; ++i) {
    const F score = set1(scores[i]);
    const I place = set1(index[i]);
    int rank = 0;
    for (int64_t j = 0; j < n; j += W) {
      const F other = load(scores + j);
      const Mask before = gt(other, score) | (eq(other, score) & lt(load(index + j), place));
      rank += count(static_cast<Mask>(before & first_lanes(n - j)));
    }
    ranks[i] = rank;
  }
}

// Two spare (score, index) lists for the narrowing passes.
struct Scratch {
  float* scores[2];
  int32_t* index[2];
  static int64_t bytes(int64_t capacity) { return 4 * (capacity + W) * 4; }
};

inline Scratch scratch_at(char* memory, int64_t capacity) {
  float* base = reinterpret_cast<float*>(memory);
  const int64_t step = capacity + W;
  return {{base, base + step},
          {reinterpret_cast<int32_t*>(base + 2 * step), reinterpret_cast<int32_t*>(base + 3 * step)}};
}

// Entries within `low` but not within `high`, in order; *above counts those within `high`.
inline int64_t between(const float* scores, const int32_t* index, int64_t n, Cut low, Cut high,
                       float* out_scores, int32_t* out_index, int64_t* above) {
  int64_t kept = 0, within_high = 0;
  for (int64_t i = 0; i < n; i += W) {
    const F score = load(scores + i);
    const I place = load(index + i);
    const Mask lanes = first_lanes(n - i);
    const Mask top = within(score, place, high) & lanes;
    const Mask middle = static_cast<Mask>(within(score, place, low) & lanes & ~top);
    within_high += count(top);
    const I order = front_order(middle);
    store(out_scores + kept, ordered(order, score));
    store(out_index + kept, ordered(order, place));
    kept += count(middle);
  }
  *above = within_high;
  return kept;
}

// The m-th best (1 <= m <= n) of the entries, as a cut that exactly m of them are within: by (score, index)
// throughout, for lists in which ties decide.
inline Cut mth_best_among_ties(const float* scores, const int32_t* index, int64_t n, int64_t m,
                               const Scratch& scratch) {
  constexpr int SAMPLE = static_cast<int>(SMALL);
  int32_t ranks[SMALL + 16];
  int side = 0;
  while (n > SMALL) {
    float sample_score[SAMPLE + 16], sorted_score[SAMPLE];
    int32_t sample_index[SAMPLE + 16], sorted_index[SAMPLE];
    for (int i = 0; i < SAMPLE; ++i) {
      const int64_t at = i * n / SAMPLE;
      sample_score[i] = scores[at];
      sample_index[i] = index[at];
    }
    rank_all(sample_score, sample_index, SAMPLE, ranks);
    for (int i = 0; i < SAMPLE; ++i) {
      sorted_score[ranks[i]] = sample_score[i];
      sorted_index[ranks[i]] = sample_index[i];
    }
    const Places at = bracket_places<SAMPLE>(static_cast<double>(m), static_cast<double>(n), 1.8);
    const Cut high = at.high < 0 ? cut_nothing() : Cut{sorted_score[at.high], sorted_index[at.high]};
    const Cut low = at.low == SAMPLE ? cut_everything() : Cut{sorted_score[at.low], sorted_index[at.low]};
    float* to_scores = scratch.scores[side];
    int32_t* to_index = scratch.index[side];
    int64_t above = 0, unused = 0;
    int64_t kept = between(scores, index, n, low, high, to_scores, to_index, &above);
    if (m <= above) {  // the bracket missed: it lies above
      kept = between(scores, index, n, high, cut_nothing(), to_scores, to_index, &unused);
    } else if (m > above + kept) {  // or below
      const int64_t skipped = above + kept;
      kept = between(scores, index, n, cut_everything(), low, to_scores, to_index, &unused);
      m -= skipped;
    } else {
      m -= above;
    }
    scores = to_scores;
    index = to_index;
    n = kept;
    side ^= 1;
  }
  float tail_score[SMALL + 16];
  int32_t tail_index[SMALL + 16];
  std::memcpy(tail_score, scores, sizeof(float) * static_cast<size_t>(n));
  std::memcpy(tail_index, index, sizeof(int32_t) * static_cast<size_t>(n));
  rank_all(tail_score, tail_index, n, ranks);
  for (int64_t i = 0; i < n; ++i)
    if (ranks[i] == m - 1) return {tail_score[i], tail_index[i]};
  return cut_everything();
}

// The m-th highest of n <= SMALL + W scores; *above: how many are higher, *equal: how many are the same.
inline float mth_highest_small(const float* scores, int64_t n, int64_t m, int64_t* above, int64_t* equal) {
  for (int64_t i = 0; i < n; ++i) {
    const F score = set1(scores[i]);
    int higher = 0, same = 0;
    for (int64_t j = 0; j < n; j += W) {
      const F other = load(scores + j);
      const Mask lanes = first_lanes(n - j);
      higher += count(static_cast<Mask>(gt(other, score) & lanes));
      same += count(static_cast<Mask>(eq(other, score) & lanes));
    }
    if (higher < m && m <= higher + same) {
      *above = higher;
      *equal = same;
      return scores[i];
    }
  }
  return scores[0];  // not reached: some score is the m-th
}

// Scores strictly between `low` and `high`, in order; *above counts those at `high` or higher.
inline int64_t scores_between(const float* scores, int64_t n, float low, float high, float* out,
                              int64_t* above) {
  const F top = set1(high), bottom = set1(low);
  int64_t kept = 0, higher = 0;
  for_vectors(
      n, [&](int64_t i, Mask lanes) __attribute__((always_inline)) {
        const F score = load(scores + i);
        const Mask at_top = ge(score, top) & lanes;
        const Mask middle = static_cast<Mask>(gt(score, bottom) & ~at_top & lanes);
        higher += count(at_top);
        store(out + kept, compress(middle, score));
        kept += count(middle);
      });
  *above = higher;
  return kept;
}

// Lanes i of a vector with i & K and i & J both zero or both not.
constexpr unsigned same_order_lanes(int k, int j) {
  unsigned lanes = 0;
  for (int i = 0; i < W; ++i)
    if (((i & k) == 0) == ((i & j) == 0)) lanes |= 1u << i;
  return lanes;
}

// One step of a bitonic network over V vectors: places J apart are put in order, highest first where the
// place has no bit K.
template <int V, int K, int J>
inline void exchange(F* v) {
#pragma GCC unroll 8
  for (int a = 0; a < V; ++a) {
    if constexpr (J >= W) {
      const int b = a ^ (J / W);
      if (b < a) continue;
      const F high = max(v[a], v[b]), low = min(v[a], v[b]);
      v[a] = (a * W & K) ? low : high;
      v[b] = (a * W & K) ? high : low;
    } else {
      const F other = swap_lanes<J>(v[a]), high = max(v[a], other), low = min(v[a], other);
      constexpr unsigned lanes = same_order_lanes(K < W ? K : 0, J);
      v[a] = (a * W & K) && K >= W ? blend<lanes>(low, high) : blend<lanes>(high, low);
    }
  }
  if constexpr (J > 1) exchange<V, K, J / 2>(v);
}

// Sorts V vectors of scores, none of them NaN, highest first.
template <int V, int K = 2>
inline void sort_scores(F* v) {
  exchange<V, K, K / 2>(v);
  if constexpr (K < V * W) sort_scores<V, 2 * K>(v);
}

// Evenly spaced groups of 4 of n > SAMPLED scores, highest first: sorted [SAMPLED].
inline void sorted_sample(const float* scores, int64_t n, float* sorted) {
  const int64_t step = n / (SAMPLED / 4);
  F v[SAMPLED / W];
  for (int64_t a = 0; a < SAMPLED / W; ++a) v[a] = load_groups(scores + a * (W / 4) * step, step);
  sort_scores<SAMPLED / W>(v);
  for (int64_t a = 0; a < SAMPLED / W; ++a) store(sorted + a * W, v[a]);
}

// The m-th highest (1 <= m <= n) of the scores; *shared: whether more than m are as high.
inline float mth_highest(const float* scores, int64_t n, int64_t m, const Scratch& scratch, bool* shared) {
  int64_t above = 0, equal = 0;
  for (int side = 0; n > SMALL; side ^= 1) {
    float sorted[SAMPLED];
    sorted_sample(scores, n, sorted);
    const Places at = bracket_places<SAMPLED>(static_cast<double>(m), static_cast<double>(n), 1.4);
    const float high = at.high < 0 ? __builtin_nanf("") : sorted[at.high];
    const float low = at.low == SAMPLED ? -__builtin_inff() : sorted[at.low];
    int64_t kept = scores_between(scores, n, low, high, scratch.scores[side], &above);
    if (m <= above) {  // missed: it lies above, or is the bracket's upper end
      const int64_t at_end = above;
      kept = scores_between(scores, n, high, __builtin_nanf(""), scratch.scores[side], &above);
      *shared = m < at_end;
      if (m > kept) return high;
    } else if (m > above + kept) {  // or below, or is the lower end
      kept = scores_between(scores, n, -__builtin_inff(), low, scratch.scores[side], &above);
      *shared = m < above;
      if (m <= above) return low;
      *shared = true;
      if (m > above + kept) return -__builtin_inff();
    }
    scores = scratch.scores[side];
    n = kept;
    m -= above;
  }
  float tail[SMALL + 16];
  std::memcpy(tail, scores, sizeof(float) * static_cast<size_t>(n));
  const float score = mth_highest_small(tail, n, m, &above, &equal);
  *shared = m < above + equal;
  return score;
}

// The m-th best (1 <= m <= n) of the entries, as a cut that exactly m of them are within: indices matter only
// when the m-th score is shared and not all that share it are wanted.
inline Cut mth_best(const float* scores, const int32_t* index, int64_t n, int64_t m, const Scratch& scratch) {
  bool shared;
  const float score = mth_highest(scores, n, m, scratch, &shared);
  return shared ? mth_best_among_ties(scores, index, n, m, scratch) : Cut{score, INT32_MAX};
}

// As `mth_best` where only the cut's score is needed.
inline Cut mth_best_score(const float* scores, int64_t n, int64_t m, const Scratch& scratch) {
  bool shared;
  return {mth_highest(scores, n, m, scratch, &shared), INT32_MAX};
}

template <bool BY_SCORE>
inline void keep_within_cut(List& list, int rows, int judge, Cut cut) {
  int64_t kept = 0;
  for_vectors(
      list.n, [&](int64_t i, Mask lanes) __attribute__((always_inline)) {
        const Mask mask = within<BY_SCORE>(load(list.row(judge) + i), list.index + i, cut) & lanes;
        const I order = front_order(mask);
        for (int r = 0; r < rows; ++r) store(list.row(r) + kept, ordered(order, load(list.row(r) + i)));
        store(list.index + kept, ordered(order, load(list.index + i)));
        kept += count(mask);
      });
  list.n = kept;
}

// Keep the entries of `list` within `cut` of row `judge`; order stays. In place: what is written has been
// read.
inline void keep_within(List& list, int rows, int judge, Cut cut) {
  if (by_score(cut))
    keep_within_cut<true>(list, rows, judge, cut);
  else
    keep_within_cut<false>(list, rows, judge, cut);
}

}  // namespace CPR_ISA_NAMESPACE
}  // namespace cpr
