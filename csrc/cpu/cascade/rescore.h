// Exact selection from int16 scores (scores/int16.h). Every int16 score is within `error` of the exact one,
// so the cut found among int16 scores is within `error` of the true cut, and only entries within twice that
// of it may be on the wrong side: those are scored again exactly.
#pragma once
#include "../scores/gathered.h"
#include "../scores/int16.h"
#include "filter.h"

namespace cpr {
namespace CPR_ISA_NAMESPACE {

// A cut must lie this many errors inside its bracket: it is off by one, and entries looked at by two more.
constexpr float MARGIN = 3;
constexpr float MARGIN_BEFORE = 3.5f;  // and brackets are set wider by so many: a longer key may still come
constexpr float WIDE_ENOUGH = 32;      // errors a bracket must span, or too much would be scored again

// A bracket set from what has been collected, widened by the error of the scores it judges; no further than
// the bracket before it, as what that one counted is not looked at again.
inline void widen_bracket(Bracket& bracket, const Bracket& before, float error) {
  bracket.certain.score += MARGIN_BEFORE * error;
  bracket.possible.score -= MARGIN_BEFORE * error;
  if (bracket.certain.score >= before.certain.score) bracket.certain = before.certain;
  if (bracket.possible.score <= before.possible.score) bracket.possible = before.possible;
}

inline bool too_narrow(const Bracket& bracket, float error) {
  return bracket.certain.score - bracket.possible.score < error * WIDE_ENOUGH;
}

// Where scores [n] lie within [low, high]: places, or of[place]. *above counts those that are higher.
inline int64_t find_between(const float* scores, const int32_t* of, int64_t n, float low, float high,
                            int32_t* places, int64_t* above) {
  int64_t found = 0, higher = 0;
  for_vectors(
      n, [&](int64_t i, Mask lanes) __attribute__((always_inline)) {
        const F score = load(scores + i);
        const Mask top = gt(score, set1(high)) & lanes;
        const Mask mask = static_cast<Mask>(ge(score, set1(low)) & lanes & ~top);
        higher += count(top);
        if (!mask) return;
        store(places + found, ordered(front_order(mask), of ? load(of + i) : iota(static_cast<int32_t>(i))));
        found += count(mask);
      });
  *above = higher;
  return found;
}

// The keys' bias added to row `r` of a list, as the last step of its scores.
inline void add_bias(const List& list, int r, const float* key_bias) {
  float* const scores = list.row(r);
  for_vectors(
      list.n, [&](int64_t i, Mask lanes) __attribute__((always_inline)) {
        const int32_t first = list.index[i];
        if (lanes == ALL && eq(load(list.index + i), iota(first)) == ALL) {  // neighbours
          store(scores + i, add(load(scores + i), load(key_bias + first)));
          return;
        }
        for (int lane = 0; lane < count(lanes); ++lane) scores[i + lane] += key_bias[list.index[i + lane]];
      });
}

// The least biased score of an entry that may be among the best, where `cut` is the last of those by scores
// that are off by up to `error`: adding the bias rounds both once more.
inline float least_biased(float cut, float error) {
  const float low = cut - 2 * error - 16 * ROUNDING * (__builtin_fabsf(cut) + error);
  return low == low ? low : -__builtin_inff();
}

// What it takes to decide one query's int16 scores exactly.
struct Refine {
  const CascadeArgs* args;
  const CascadePlan* plan;
  const float* query;  // its row of each view, widened, one after another
  float* error;        // [R] how far a row's scores may be off
  Gathered gathered;
  int32_t* places;  // [capacity] in a list, of what is scored again
  float* near;      // [capacity + W] its exact scores
  int32_t* index;   // [capacity + W] and indices

  const View& view_of(int row) const { return args->views[plan->slot_of_row[row]]; }
  const float* query_of(int row) const {
    const float* place = query;
    for (int v = 0; v < plan->slot_of_row[row]; ++v) place += args->views[v].dim;
    return place;
  }

  // Whether entries near the cut all lie inside the bracket.
  bool inside(Cut cut, const Bracket& bracket, int row) const {
    const float reach = MARGIN * error[row];
    return !(cut.score + reach >= bracket.certain.score) &&
           (drops_nothing(bracket) || cut.score - reach > bracket.possible.score);
  }

  // Exact scores of `row` of the n keys at `index`: in `near`.
  void score(int row, int64_t n) const {
    const View& view = view_of(row);
    for (int64_t i = 0; i < n && i < Gathered::AHEAD; ++i) prefetch_row(view, args->dtype, index[i]);
    for (int64_t i = 0; i < n; i += Gathered::BLOCK)
      gathered.score(view, args->dtype, query_of(row), index + i,
                     n - i < Gathered::BLOCK ? n - i : Gathered::BLOCK, n - i, near + i);
  }
  // The same of n entries of a list, at `places`: in `near`, and in the list.
  void score_again(List& list, int row, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) index[i] = list.index[places[i]];
    score(row, n);
    for (int64_t i = 0; i < n; ++i) list.row(row)[places[i]] = near[i];
  }

  // From the cut after `rank` of int16 `scores` [n], of the list's entries at `of` (null: all), to the true
  // one; whatever of the list is near it has exact scores then. The true cut is within `error` of the int16
  // one, so entries within twice that decide. It hardly ever moves by an eighth of that: then entries within
  // 9/8 do.
  Cut sharpen(List& list, int row, const float* scores, const int32_t* of, int64_t n, int64_t rank, Cut cut,
              const Scratch& scratch) const {
    if (cut.score == -__builtin_inff()) return cut;
    Cut sharp = cut;
    for (float moves = 0.125f; moves <= 1; moves *= 8) {
      const float reach = (1 + moves) * error[row], low = cut.score - reach, high = cut.score + reach;
      int64_t above;
      const int64_t found = find_between(scores, of, n, low, high, places, &above);
      if (rank <= above || rank > above + found) continue;  // it moves by more
      score_again(list, row, found);
      sharp = mth_best(near, index, found, rank - above, scratch);
      if (__builtin_fabsf(sharp.score - cut.score) <= moves * error[row]) break;
    }
    return sharp;
  }

  // Of a list's entries, those that may be among the `keep` best by `row`, all with exact scores.
  void keep_exact(List& list, int row, int64_t keep, const Scratch& scratch) const {
    const bool biased = plan->biased_late;
    if (biased) add_bias(list, row, args->key_bias);
    if (list.n > keep) {
      const float cut = mth_best_score(list.row(row), list.n, keep, scratch).score;
      const float low = biased ? least_biased(cut, error[row]) : cut - 2 * error[row];
      keep_within(list, plan->rows, row, {low, INT32_MAX});
    }
    for (int64_t i = 0; i < list.n; ++i) places[i] = static_cast<int32_t>(i);
    score_again(list, row, list.n);
    if (biased) add_bias(list, row, args->key_bias);
  }
};

}  // namespace CPR_ISA_NAMESPACE
}  // namespace cpr
