// The exact half of the cascade: from what a query has collected to its positives.
#pragma once
#include "../../ranking.h"
#include "../select/radix_sort.h"
#include "rescore.h"

namespace cpr {
namespace CPR_ISA_NAMESPACE {

// Entries of `from` at [at, at + n), of the keys from `first` on, that are NaN in no row: appended to `to`.
inline void append_scored(const List& from, int64_t at, int64_t first, int64_t n, int rows, List& to) {
  int64_t kept = to.n;
  for_vectors(
      n, [&](int64_t i, Mask lanes) __attribute__((always_inline)) {
        const Mask alive = without_nan(
            lanes, rows, [&](int r) __attribute__((always_inline)) { return load(from.row(r) + at + i); });
        const I order = front_order(alive);
        for (int r = 0; r < rows; ++r) store(to.row(r) + kept, ordered(order, load(from.row(r) + at + i)));
        store(to.index + kept, ordered(order, iota(static_cast<int32_t>(first + i))));
        kept += count(alive);
      });
  to.n = kept;
}

// The entries that a level's bracket leaves open.
struct Undecided {
  float* scores;
  int32_t* index;  // of keys, or places in the list
  int64_t n;
  int64_t
      newly_certain;  // certain at this level, undecided at an earlier one: the sweep has not counted them

  void append(Mask lanes, F score, I place) {
    const I order = front_order(lanes);
    store(scores + n, ordered(order, score));
    store(index + n, ordered(order, place));
    n += count(lanes);
  }
};

// Working memory of one thread for resolving one query.
struct Workspace {
  List merged;   // empty, for what several parts have collected
  List entries;  // all that the query has collected, then what is alive of it
  Scratch scratch;
  Undecided undecided;
  uint64_t* keys;  // [2 capacity] for sorting long results

  static int64_t capacity(const CascadePlan& plan, int parts) { return parts * Collected::capacity(plan); }
  static int64_t bytes(const CascadePlan& plan, int parts) {
    const int64_t n = capacity(plan, parts);
    return (List::bytes(plan.rows, n) + Scratch::bytes(n) + List::bytes(1, n) + 2 * (n + 16) * 8 + 63) &
           ~int64_t{63};
  }
  static Workspace at(char* memory, const CascadePlan& plan, int parts) {
    const int64_t n = capacity(plan, parts);
    Workspace w;
    w.keys = reinterpret_cast<uint64_t*>(memory);
    memory += 2 * (n + 16) * 8;
    w.merged = w.entries = list_at(memory, plan.rows, n);
    memory += List::bytes(plan.rows, n);
    const List undecided = list_at(memory, 1, n);
    w.undecided = {undecided.scores, undecided.index, 0, 0};
    w.scratch = scratch_at(memory + List::bytes(1, n), n);
    return w;
  }
};

// Narrow `list` to its `keep` best by row `judge`.
inline void keep_best(List& list, int rows, int judge, int64_t keep, const Scratch& scratch) {
  if (list.n > keep)
    keep_within(list, rows, judge, mth_best(list.row(judge), list.index, list.n, keep, scratch));
}

// One level of the entries, all alive so far: the undecided ones are appended to `to`. PLACES: with their
// places in the list, not their indices. MERGE: the entries are appended to `merged` too.
template <bool BY_SCORE, bool PLACES, bool MERGE>
inline void split_level_by(const CascadePlan& plan, int level, const List& entries, const Bracket* brackets,
                           List& merged, Undecided& to) {
  Undecided open = to;  // its counts stay in registers
  const int64_t first = MERGE ? merged.n : 0;
  const float* judge = entries.row(plan.row_of_stage[level]);
  for_vectors(
      entries.n, [&](int64_t i, Mask lanes) __attribute__((always_inline)) {
        const int32_t* const place = entries.index + i;
        const F score = load(judge + i);
        const Mask sure = within<BY_SCORE>(score, place, brackets[level].certain) & lanes;
        const Mask possible = within<BY_SCORE>(score, place, brackets[level].possible) & lanes;
        const Mask maybe = static_cast<Mask>(possible & ~sure);
        Mask counted = sure;
        for (int l = 0; l < level; ++l)
          counted = counted &
                    within<BY_SCORE>(load(entries.row(plan.row_of_stage[l]) + i), place, brackets[l].certain);
        open.newly_certain += count(static_cast<Mask>(sure & ~counted));
        open.append(maybe, score, PLACES ? iota(static_cast<int32_t>(first + i)) : load(place));
        if (!MERGE) return;
        for (int r = 0; r < plan.rows; ++r) store(merged.row(r) + first + i, load(entries.row(r) + i));
        store(merged.index + first + i, load(place));
      });
  to = open;
  if (MERGE) merged.n += entries.n;
}
template <bool PLACES, bool MERGE>
inline void split_level(const CascadePlan& plan, int level, const List& entries, const Bracket* brackets,
                        List& merged, Undecided& to) {
  bool plain = by_score(brackets[level].possible);
  for (int l = 0; l <= level; ++l) plain = plain && by_score(brackets[l].certain);
  if (plain)
    split_level_by<true, PLACES, MERGE>(plan, level, entries, brackets, merged, to);
  else
    split_level_by<false, PLACES, MERGE>(plan, level, entries, brackets, merged, to);
}

// A level of all that a query has collected and that is alive: `w.undecided`. The first level takes the
// parts' lists as they lie and makes them `w.entries` on the way; a single list that may be spent is taken
// itself.
template <bool PLACES>
inline void split_entries(const CascadePlan& plan, int level, const Collected* parts, int num_parts,
                          bool spend, const Bracket* brackets, Workspace& w) {
  w.undecided.n = w.undecided.newly_certain = 0;
  spend = spend && num_parts == 1;
  if (level == 0) w.entries = spend ? parts[0].list(plan) : w.merged;
  if (level > 0 || spend)
    return split_level<PLACES, false>(plan, level, w.entries, brackets, w.entries, w.undecided);
  for (int p = 0; p < num_parts; ++p)
    split_level<PLACES, true>(plan, level, parts[p].list(plan), brackets, w.entries, w.undecided);
}

// All that a query has collected, where no level splits it.
inline void merge_parts(const CascadePlan& plan, const Collected* parts, int num_parts, Workspace& w) {
  w.entries = num_parts == 1 ? parts[0].list(plan) : w.merged;
  for (int p = 0; num_parts > 1 && p < num_parts; ++p) {
    const List more = parts[p].list(plan);
    for (int r = 0; r < plan.rows; ++r)
      std::memcpy(w.entries.row(r) + w.entries.n, more.row(r), sizeof(float) * static_cast<size_t>(more.n));
    std::memcpy(w.entries.index + w.entries.n, more.index, sizeof(int32_t) * static_cast<size_t>(more.n));
    w.entries.n += more.n;
  }
}

// The cut after `rank` entries of a level, of which `certain` are within the bracket's certain cut and the
// rest among its undecided ones; no further than the bracket's own ends.
inline Cut cut_at(const CascadePlan& plan, int64_t rank, int64_t certain, const Bracket& bracket,
                  const Workspace& w) {
  const Undecided& open = w.undecided;
  if (rank <= certain) return bracket.certain;
  if (rank >= certain + open.n) return bracket.possible;
  if (plan.int16_scores) return mth_best_score(open.scores, open.n, rank - certain, w.scratch);
  return mth_best(open.scores, open.index, open.n, rank - certain, w.scratch);
}

// Entries of one part after its brackets were tightened: what became certain at a level is counted there,
// what no longer matters is dropped.
inline void reclassify(const CascadePlan& plan, const Bracket* before, const Bracket* after,
                       const Collected& part) {
  const List list = part.list(plan);
  int64_t kept = 0;
  for (int64_t i = 0; i < list.n; i += W) {
    const I place = load(list.index + i);
    Mask was_alive = first_lanes(list.n - i), alive = was_alive, keep = 0;
    for (int l = 0; l < plan.levels; ++l) {
      const F score = load(list.row(plan.row_of_stage[l]) + i);
      const Mask was_sure = was_alive & within(score, place, before[l].certain);
      const Mask sure = alive & within(score, place, after[l].certain);
      keep = static_cast<Mask>(keep | (alive & within(score, place, after[l].possible) & ~sure));
      part.certain[l] += count(static_cast<Mask>(sure & ~was_sure));
      was_alive = was_sure;
      alive = sure;
    }
    keep = static_cast<Mask>(keep | alive);
    const I order = front_order(keep);
    for (int r = 0; r < plan.rows; ++r) store(list.row(r) + kept, ordered(order, load(list.row(r) + i)));
    store(list.index + kept, ordered(order, place));
    kept += count(keep);
  }
  *part.length = kept;
}

inline bool overflowed(const Collected* parts, int num_parts) {
  for (int p = 0; p < num_parts; ++p)
    if (*parts[p].length < 0) return true;
  return false;
}

inline int64_t certain_of(const Collected* parts, int num_parts, int level) {
  int64_t total = 0;
  for (int p = 0; p < num_parts; ++p) total += parts[p].certain[level];
  return total;
}

// Brackets tightened to what the keys visited by the end of `pass` say; `error` [R] of int16 scores, or
// null. Wrong ones are noticed by decide_levels.
inline void narrow(const CascadePlan& plan, const Pass& pass, const Collected* parts, int num_parts,
                   const float* error, Bracket* brackets, Workspace& w) {
  if (overflowed(parts, num_parts)) return;
  Bracket before[MAX_LEVELS];
  for (int l = 0; l < plan.levels; ++l) before[l] = brackets[l];
  for (int l = 0; l < plan.levels; ++l) {
    split_entries<false>(plan, l, parts, num_parts, false, before, w);
    const int64_t certain = certain_of(parts, num_parts, l) + w.undecided.newly_certain;
    brackets[l].certain = cut_at(plan, pass.certain_rank[l], certain, before[l], w);
    brackets[l].possible = cut_at(plan, pass.possible_rank[l], certain, before[l], w);
    if (error) widen_bracket(brackets[l], before[l], error[plan.row_of_stage[l]]);
    if (l + 1 == plan.levels) break;
    const Cut middle = cut_at(plan, pass.middle_rank[l], certain, before[l], w);
    keep_within(w.entries, plan.rows, plan.row_of_stage[l], middle);
  }
  for (int p = 0; p < num_parts; ++p) {
    if (pass.starts_over)
      parts[p].clear(plan);
    else
      reclassify(plan, before, brackets, parts[p]);
  }
}

// Decides the levels exactly: `w.entries` becomes what is alive after level L. `refine`: the scores are
// int16 scores; may be null. False when a bracket missed.
inline bool decide_levels(const CascadePlan& plan, const Collected* parts, int num_parts,
                          const Bracket* brackets, const Refine* refine, Workspace& w) {
  if (overflowed(parts, num_parts)) return false;
  if (plan.levels == 0) merge_parts(plan, parts, num_parts, w);
  for (int l = 0; l < plan.levels; ++l) {
    (refine ? split_entries<true> : split_entries<false>)(plan, l, parts, num_parts, true, brackets, w);
    const Undecided& open = w.undecided;
    const int64_t certain = certain_of(parts, num_parts, l) + open.newly_certain;
    const int64_t keep = plan.keep[l];
    if (keep < certain || (keep > certain + open.n && !drops_nothing(brackets[l]))) return false;
    const int row = plan.row_of_stage[l];
    Cut cut = cut_at(plan, keep, certain, brackets[l], w);
    if (refine) {
      if (!refine->inside(cut, brackets[l], row)) return false;
      cut = refine->sharpen(w.entries, row, open.scores, open.index, open.n, keep - certain, cut, w.scratch);
    }
    keep_within(w.entries, plan.rows, row, cut);
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
    sort_ranking_keys(keys, list.n, keys + list.n);
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

// As keep_best, exactly, of int16 scores.
inline void keep_best_of_int16(List& list, int rows, int judge, int64_t keep, const Refine& refine,
                               const Scratch& scratch) {
  if (list.n <= keep) return;
  const Cut near_cut = mth_best_score(list.row(judge), list.n, keep, scratch);
  const Cut cut = refine.sharpen(list, judge, list.row(judge), nullptr, list.n, keep, near_cut, scratch);
  keep_within(list, rows, judge, cut);
}

// The stages from `first` on, exactly, and the result. `refine`: the scores are int16 scores.
inline void finish(const CascadeArgs& args, const CascadePlan& plan, int first, const Refine* refine,
                   Workspace& w, int64_t q) {
  const int last = args.num_stages - 1;
  const int64_t k = args.keep[last];
  for (int s = first; s < args.num_stages; ++s) {
    if (s == last && plan.biased_late && !refine) add_bias(w.entries, plan.row_of_stage[last], args.key_bias);
    if (s == last && (refine || w.entries.n <= SMALL)) break;  // emit ranks a few
    const int row = plan.row_of_stage[s];
    if (refine)
      keep_best_of_int16(w.entries, plan.rows, row, plan.keep[s], *refine, w.scratch);
    else
      keep_best(w.entries, plan.rows, row, plan.keep[s], w.scratch);
  }
  if (refine) refine->keep_exact(w.entries, plan.row_of_stage[last], k, w.scratch);
  emit(w.entries, plan.row_of_stage[last], k, w.keys, args.indices + q * k, args.scores + q * k);
}

}  // namespace CPR_ISA_NAMESPACE
}  // namespace cpr
