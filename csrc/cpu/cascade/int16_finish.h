// The exact half of the cascade for what was collected in codes: from a query's entries to its positives.
#pragma once
#include "finish.h"
#include "int16_lists.h"

namespace cpr {
namespace CPR_ISA_NAMESPACE {

constexpr int64_t FEW_CODES = 256;  // of which the m-th is found by halving alone

// Codes strictly between `low` and `high`, in order; *above counts those at `high` or higher.
inline int64_t codes_between(const int16_t* codes, int64_t n, int low, int high, int16_t* out,
                             int64_t* above_high) {
  const S top = set1_code(high - 1), bottom = set1_code(low);
  S higher = set1_code(0);
  int64_t kept = 0;
  for_codes(
      n, [&](int64_t i, On lanes) __attribute__((always_inline)) {
        const S code = load_codes(codes + i);
        const On at_top = both(above(code, top), lanes);
        const Front front(but_not(both(above(code, bottom), lanes), at_top));
        higher = tally(higher, at_top);
        front.store(out + kept, code);
        kept += front.count;
      });
  *above_high = total(higher);
  return kept;
}

inline int64_t count_above(const int16_t* codes, int64_t n, int low) {
  const S bottom = set1_code(low);
  S counts = set1_code(0);
  for_codes(
      n, [&](int64_t i, On lanes) __attribute__((always_inline)) {
        counts = tally(counts, both(above(load_codes(codes + i), bottom), lanes));
      });
  return total(counts);
}

// The m-th highest (1 <= m <= n) of the codes.
inline int mth_highest_code(const int16_t* codes, int64_t n, int64_t m, int16_t* const* scratch) {
  int low = NO_CODE, high = HIGHEST_CODE + 1;  // it lies between
  for (int side = 0; n > FEW_CODES; side ^= 1) {
    float spread[SAMPLED], sorted[SAMPLED];
    for (int i = 0; i < SAMPLED; ++i) spread[i] = codes[i / 4 * (n / (SAMPLED / 4)) + i % 4];
    sorted_sample(spread, SAMPLED, sorted);
    const Places at = bracket_places<SAMPLED>(static_cast<double>(m), static_cast<double>(n), 1.4);
    int upper = at.high < 0 ? high : static_cast<int>(sorted[at.high]);
    int lower = at.low == SAMPLED ? low : static_cast<int>(sorted[at.low]);
    int64_t higher, kept = codes_between(codes, n, lower, upper, scratch[side], &higher);
    if (m <= higher) {  // missed: it lies above, or is the bracket's upper end
      lower = upper;
      upper = high;
      kept = codes_between(codes, n, lower, upper, scratch[side], &higher);
      if (m > kept) return lower;
    } else if (m > higher + kept) {  // or below, or is the lower end
      upper = lower;
      lower = low;
      kept = codes_between(codes, n, lower, upper, scratch[side], &higher);
      if (m <= higher) return upper;
    }
    codes = scratch[side];
    n = kept;
    m -= higher;
    low = lower;
    high = upper;
  }
  while (high - low > 1) {
    const int middle = (low + high) >> 1;
    if (count_above(codes, n, middle) >= m)
      low = middle;
    else
      high = middle;
  }
  return high;
}

// Where codes [n] lie within [low, high]: places, or of[place]. *above_high counts those that are higher.
inline int64_t find_codes(const int16_t* codes, const uint16_t* of, int64_t n, int low, int high,
                          uint16_t* places, int64_t* above_high) {
  const S upper = set1_code(high), lower = set1_code(low - 1);
  S higher = set1_code(0);
  int64_t found = 0;
  for_codes(
      n, [&](int64_t i, On lanes) __attribute__((always_inline)) {
        const S code = load_codes(codes + i);
        const On top = both(above(code, upper), lanes), here = but_not(both(above(code, lower), lanes), top);
        higher = tally(higher, top);
        if (!any(here)) return;
        const Front front(here);
        front.store(places + found, of ? load_codes(of + i) : counting_from(i));
        found += front.count;
      });
  *above_high = total(higher);
  return found;
}

// Working memory of one thread for resolving one query.
struct CodeWorkspace {
  CodeList* lists;   // [parts] as the parts have collected them, and `entries`
  CodeList entries;  // empty, for what is alive after a level
  int first, count;  // of the lists, those that hold what is alive now
  CodeList open;     // one row: what a level's bracket leaves undecided, with places in the lists, end to end
  uint16_t* places;  // of what is scored again
  int16_t* spare[2];

  static CodeWorkspace take(Arena& arena, const CascadePlan& plan, int parts) {
    const int64_t n = parts * plan.list_capacity;
    CodeWorkspace w{};
    w.lists = arena.take<CodeList>(parts + 1);
    const auto list_of = [&](int rows) {
      return codes_at(arena.take<char>(CodeList::bytes(rows, n)), rows, n);
    };
    w.entries = list_of(plan.rows);
    w.open = list_of(1);
    w.places = arena.take<uint16_t>(n + SHORTS);
    for (int side = 0; side < 2; ++side) w.spare[side] = arena.take<int16_t>(n + SHORTS);
    return w;
  }
  // step(list, place): the list that holds the entry at a place, and its place there.
  template <class Step>
  void at(int64_t place, Step step) const {
    const CodeList* list = lists + first;
    for (; place >= list->n; ++list) place -= list->n;
    step(*list, place);
  }
};

// What a level's bracket leaves open of the entries, all alive so far: `w.open`. Returns how many are certain
// here, though undecided earlier: alive, and not counted by the sweep.
inline int64_t open_codes(const CascadePlan& plan, int level, const CodeBracket* brackets, CodeWorkspace& w) {
  int16_t* const codes = w.open.row(0);
  S newly_certain = set1_code(0);
  int64_t n = 0, first = 0;
  for (int p = w.first; p < w.first + w.count; ++p) {
    const CodeList list = w.lists[p];
    const int16_t* const judge = list.row(plan.row_of_stage[level]);
    for_codes(
        list.n, [&](int64_t i, On lanes) __attribute__((always_inline)) {
          const S code = load_codes(judge + i);
          const On sure = both(above(code, brackets[level].certain), lanes);
          On counted = sure;
          for (int l = 0; l < level; ++l)
            counted =
                both(counted, above(load_codes(list.row(plan.row_of_stage[l]) + i), brackets[l].certain));
          newly_certain = tally(newly_certain, but_not(sure, counted));
          const Front front(but_not(both(above(code, brackets[level].possible), lanes), sure));
          front.store(codes + n, code);
          front.store(w.open.index + n, counting_from(first + i));
          n += front.count;
        });
    first += list.n;
  }
  w.open.n = n;
  return total(newly_certain);
}

// Of the entries, those stay, in order, whose code in `row` lies above `below`.
inline void keep_codes(const CascadePlan& plan, int num_parts, int row, int below, CodeWorkspace& w) {
  CodeList out = w.lists[num_parts];
  const S bottom = set1_code(below);
  int64_t n = 0;
  for (int p = w.first; p < w.first + w.count; ++p) {
    const CodeList list = w.lists[p];
    for_codes(
        list.n, [&](int64_t i, On lanes) __attribute__((always_inline)) {
          const Front front(both(above(load_codes(list.row(row) + i), bottom), lanes));
          for (int r = 0; r < plan.rows; ++r) front.store(out.row(r) + n, load_codes(list.row(r) + i));
          front.store(out.index + n, load_codes(list.index + i));
          n += front.count;
        });
  }
  w.lists[num_parts].n = n;
  w.first = num_parts;
  w.count = 1;
}

// What settling one query takes: how far off its scores are, and on which quantizers.
struct CodeQuery {
  const CascadePlan& plan;
  int parts;
  const Quantizer* quantizers;
  const Refine& refine;
  Workspace& exact;
  CodeWorkspace& w;

  // Exact scores of the entries at `w.places` [n], and their indices, in `refine`. False: too many.
  bool score_again(int row, int64_t n) const {
    if (n > Workspace::capacity(plan, parts)) return false;
    for (int64_t i = 0; i < n; ++i)
      w.at(w.places[i], [&](const CodeList& list, int64_t place) { refine.index[i] = list.index[place]; });
    refine.score(row, n);
    return true;
  }

  // As Refine::sharpen, from the cut at code `cut` of `codes` [n], of the entries at `of` (null: all).
  // Entries near it that the true cut drops lose their code; of the others those above *below stay. False:
  // too many are near.
  bool sharpen(int row, const int16_t* codes, const uint16_t* of, int64_t n, int64_t rank, int cut,
               int* below) const {
    const float error = refine.error[row];
    for (float moves = 0.125f; moves <= 1; moves *= 8) {
      const float reach = (1 + moves) * error * quantizers[row].scale;
      const int low = code_of(__builtin_ceilf(cut - reach)), high = code_of(__builtin_floorf(cut + reach));
      int64_t above;
      const int64_t found = find_codes(codes, of, n, low, high, w.places, &above);
      if (rank <= above || rank > above + found) continue;  // it moves by more
      if (!score_again(row, found)) return false;
      const Cut sharp = mth_best(refine.near, refine.index, found, rank - above, exact.scratch);
      if (moves < 1 && __builtin_fabsf(sharp.score - quantizers[row].score(cut)) > moves * error) continue;
      for (int64_t i = 0; i < found; ++i)
        if (refine.near[i] < sharp.score || (refine.near[i] == sharp.score && refine.index[i] > sharp.index))
          w.at(w.places[i], [&](const CodeList& list, int64_t place) { list.row(row)[place] = NO_CODE; });
      *below = low - 1;
      return true;
    }
    return false;
  }
  static int code_of(float code) {
    return code < LOWEST_CODE ? LOWEST_CODE : code > HIGHEST_CODE ? HIGHEST_CODE : static_cast<int>(code);
  }

  // The levels, exactly: what is alive after them. False when a bracket missed.
  bool decide_levels(const Collected* collected, const Bracket* brackets) const {
    if (overflowed(collected, parts)) return false;
    CodeBracket bracket[MAX_LEVELS];
    for (int l = 0; l < plan.levels; ++l) bracket[l] = {brackets[l], quantizers[plan.row_of_stage[l]]};
    for (int p = 0; p < parts; ++p) w.lists[p] = codes_of(collected[p], plan);
    w.lists[parts] = w.entries;
    w.first = 0;
    w.count = parts;
    for (int l = 0; l < plan.levels; ++l) {
      const int row = plan.row_of_stage[l];
      const int64_t newly_certain = open_codes(plan, l, bracket, w), open = w.open.n;
      const int64_t rank = plan.keep[l] - certain_of(collected, parts, l) - newly_certain;
      int below = NO_CODE;
      if (rank <= 0) return false;
      if (rank < open) {
        const int cut = mth_highest_code(w.open.row(0), open, rank, w.spare);
        if (!refine.inside({quantizers[row].score(cut), INT32_MAX}, brackets[l], row)) return false;
        if (!sharpen(row, w.open.row(0), w.open.index, open, rank, cut, &below)) return false;
      } else if (!drops_nothing(brackets[l])) {
        return false;
      }
      keep_codes(plan, parts, row, below, w);
    }
    return true;
  }

  // The stages after the levels, exactly, and the result. False: too many scores are close.
  bool finish(const CascadeArgs& args, int64_t q) const {
    const int last = args.num_stages - 1;
    const int64_t k = args.keep[last];
    const CodeList& alive = w.lists[parts];
    for (int s = plan.levels; s <= last; ++s) {
      const int row = plan.row_of_stage[s];
      const int16_t* const codes = alive.row(row);
      if (alive.n <= plan.keep[s] || (s == last && plan.biased_late)) continue;
      const int cut = mth_highest_code(codes, alive.n, plan.keep[s], w.spare);
      int below = code_of(__builtin_ceilf(cut - 2 * refine.error[row] * quantizers[row].scale)) -
                  1;  // enough for the last
      if (s < last && !sharpen(row, codes, nullptr, alive.n, plan.keep[s], cut, &below)) return false;
      keep_codes(plan, parts, row, below, w);
    }
    const int row = plan.row_of_stage[last];
    int64_t n = alive.n;
    for (int64_t i = 0; i < n; ++i) w.places[i] = static_cast<uint16_t>(i);
    if (plan.biased_late && n > plan.keep[last]) n = best_biased(row, plan.keep[last], args.key_bias);
    if (n < 0 || !score_again(row, n)) return false;
    const List result = {refine.near, refine.index, n, n};
    if (plan.biased_late) add_bias(result, 0, args.key_bias);
    emit(result, 0, k, exact.keys, args.indices + q * k, args.scores + q * k);
    return true;
  }

  // Of what is alive, `w.places` of all that may be among the `keep` best once the bias is added; how many
  // they are. -1: too many are alive, or one is past an end of its quantizer, and may be among them or not.
  int64_t best_biased(int row, int64_t keep, const float* key_bias) const {
    const CodeList& alive = w.lists[parts];
    const int16_t* const codes = alive.row(row);
    float* const scores = refine.near;
    if (alive.n > Workspace::capacity(plan, parts)) return -1;
    for (int64_t i = 0; i < alive.n; ++i) {
      if (codes[i] >= HIGHEST_CODE || codes[i] <= LOWEST_CODE) return -1;
      scores[i] = quantizers[row].score(codes[i]) + key_bias[alive.index[i]];
    }
    const float cut = mth_best_score(scores, alive.n, keep, exact.scratch).score;
    const float low = least_biased(cut, refine.error[row]);
    int64_t n = 0;
    for (int64_t i = 0; i < alive.n; ++i) {
      w.places[n] = static_cast<uint16_t>(i);
      n += scores[i] >= low;
    }
    return n;
  }
};

}  // namespace CPR_ISA_NAMESPACE
}  // namespace cpr
