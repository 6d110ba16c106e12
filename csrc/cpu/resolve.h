// The exact half of the cascade: from what a query has collected to its positives.
#pragma once
#include "filter.h"

namespace cpr {
namespace CPR_ISA_NAMESPACE {

inline void extend(List& list, const List& more, int rows) {
  for (int r = 0; r < rows; ++r)
    std::memcpy(list.row(r) + list.n, more.row(r), sizeof(float) * static_cast<size_t>(more.n));
  std::memcpy(list.index + list.n, more.index, sizeof(int32_t) * static_cast<size_t>(more.n));
  list.n += more.n;
}

// Working memory of one thread for resolving one query.
struct Workspace {
  List merged;      // empty, for what several parts have collected
  List entries;     // all that the query has collected, then what is alive of it
  Scratch scratch;
  float* undecided_scores;
  int32_t* undecided_index;
  uint64_t* keys;   // [capacity] for sorting long results

  static int64_t capacity(const CascadePlan& plan, int parts) {
    const int64_t total = parts * plan.list_capacity;
    return total > plan.sample_size ? total : plan.sample_size;
  }
  static int64_t bytes(const CascadePlan& plan, int parts) {
    const int64_t n = capacity(plan, parts);
    return (List::bytes(plan.rows, n) + Scratch::bytes(n) + List::bytes(1, n) + (n + 16) * 8 + 63) & ~int64_t{63};
  }
  static Workspace at(char* memory, const CascadePlan& plan, int parts) {
    const int64_t n = capacity(plan, parts);
    Workspace w;
    w.keys = reinterpret_cast<uint64_t*>(memory);
    memory += (n + 16) * 8;
    w.merged = w.entries = list_at(memory, plan.rows, n);
    memory += List::bytes(plan.rows, n);
    const List undecided = list_at(memory, 1, n);
    w.undecided_scores = undecided.scores;
    w.undecided_index = undecided.index;
    w.scratch = scratch_at(memory + List::bytes(1, n), n);
    return w;
  }
};

// Narrow `list` to its `keep` best by row `judge`.
inline void keep_best(List& list, int rows, int judge, int64_t keep, const Scratch& scratch) {
  if (list.n > keep) keep_within(list, rows, judge, mth_best(list.row(judge), list.index, list.n, keep, scratch));
}

// Brackets of every level from a sample's eligible entries; consumes the list.
inline void bracket_levels(const CascadePlan& plan, List& sample, const Scratch& scratch, Bracket* brackets) {
  for (int l = 0; l < plan.levels; ++l) {
    const int judge = plan.row_of_stage[l];
    Bracket& bracket = brackets[l];
    bracket = {cut_nothing(), cut_everything()};
    const int64_t certain = plan.certain_rank[l], possible = plan.possible_rank[l];
    if (certain > sample.n) bracket.certain = cut_everything();
    if (possible < sample.n) {  // what lies beyond it matters to no level
      bracket.possible = mth_best(sample.row(judge), sample.index, sample.n, possible, scratch);
      keep_within(sample, plan.rows, judge, bracket.possible);
    }
    if (certain > 0 && certain <= sample.n)
      bracket.certain = mth_best(sample.row(judge), sample.index, sample.n, certain, scratch);
    if (l + 1 < plan.levels) keep_best(sample, plan.rows, judge, plan.middle_rank[l], scratch);
  }
}

// One level of the entries, all alive so far: the undecided ones are copied out, and those certain here that the sweep
// did not count (undecided at an earlier level, alive all the same) are counted in *late.
inline int64_t split_level(const CascadePlan& plan, int level, const List& entries, const Bracket* brackets,
                           float* scores, int32_t* index, int64_t* late) {
  int64_t undecided = 0, uncounted = 0;
  for (int64_t i = 0; i < entries.n; i += W) {
    const I place = load(entries.index + i);
    const F score = load(entries.row(plan.row_of_stage[level]) + i);
    const Mask lanes = first_lanes(entries.n - i);
    const Mask sure = within(score, place, brackets[level].certain) & lanes;
    const Mask maybe = static_cast<Mask>(within(score, place, brackets[level].possible) & lanes & ~sure);
    Mask counted = sure;
    for (int l = 0; l < level; ++l)
      counted = counted & within(load(entries.row(plan.row_of_stage[l]) + i), place, brackets[l].certain);
    uncounted += count(static_cast<Mask>(sure & ~counted));
    store(scores + undecided, compress(maybe, score));
    store(index + undecided, compress(maybe, place));
    undecided += count(maybe);
  }
  *late = uncounted;
  return undecided;
}

// Settle the levels exactly: `w.entries` becomes what is alive after level L. False when a bracket missed.
inline bool settle_levels(const CascadePlan& plan, const Collected* parts, int num_parts, const Bracket* brackets,
                          Workspace& w) {
  for (int p = 0; p < num_parts; ++p)
    if (*parts[p].length < 0) return false;
  w.entries = num_parts == 1 ? parts[0].list(plan) : w.merged;
  for (int p = 0; num_parts > 1 && p < num_parts; ++p) extend(w.entries, parts[p].list(plan), plan.rows);
  for (int l = 0; l < plan.levels; ++l) {
    const Bracket& bracket = brackets[l];
    int64_t certain;
    const int64_t undecided = split_level(plan, l, w.entries, brackets, w.undecided_scores, w.undecided_index, &certain);
    for (int p = 0; p < num_parts; ++p) certain += parts[p].certain[l];
    const int64_t places = plan.keep[l] - certain;
    if (places < 0 || (undecided < places && !drops_nothing(bracket))) return false;
    Cut cut = places == 0 ? bracket.certain : bracket.possible;
    if (places > 0 && places < undecided) cut = mth_best(w.undecided_scores, w.undecided_index, undecided, places, w.scratch);
    keep_within(w.entries, plan.rows, plan.row_of_stage[l], cut);
  }
  return true;
}

// Write the entries in ranking order: indices [k] padded with -1, scores [k] padded with -inf.
inline void emit(const List& list, int judge, int64_t k, uint64_t* keys, int64_t* indices, float* scores) {
  const float* score = list.row(judge);
  int64_t filled = list.n < k ? list.n : k;
  if (list.n <= SMALL) {
    int32_t ranks[SMALL + 16];
    rank_all(score, list.index, list.n, ranks);
    for (int64_t i = 0; i < list.n; ++i) {
      if (ranks[i] >= k) continue;
      indices[ranks[i]] = list.index[i];
      scores[ranks[i]] = score[i];
    }
  } else {
    for (int64_t i = 0; i < list.n; ++i) keys[i] = ranking_key(score[i], list.index[i]);
    sort_ranking_keys(keys, list.n);
    for (int64_t i = 0; i < filled; ++i) {
      indices[i] = static_cast<int64_t>(keys[i] & 0xFFFFFFFFu);
      scores[i] = score_of_key(keys[i]);
    }
  }
  for (int64_t i = filled; i < k; ++i) {
    indices[i] = -1;
    scores[i] = -__builtin_inff();
  }
}

// The stages from `first` on, exactly, and the result.
inline void finish(const CascadeArgs& args, const CascadePlan& plan, int first, Workspace& w, int64_t q) {
  const int last = args.num_stages - 1;
  const int64_t k = args.keep[last];
  for (int s = first; s < args.num_stages; ++s) {
    if (s == last && w.entries.n <= SMALL) break;  // emit ranks them all
    keep_best(w.entries, plan.rows, plan.row_of_stage[s], plan.keep[s], w.scratch);
  }
  emit(w.entries, plan.row_of_stage[last], k, w.keys, args.indices + q * k, args.scores + q * k);
}

}  // namespace CPR_ISA_NAMESPACE
}  // namespace cpr
