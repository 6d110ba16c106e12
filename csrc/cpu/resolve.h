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
  List undecided;  // a level's undecided entries
  List carried;    // entries once undecided, alive since
  List survivors;  // all that is left
  Scratch scratch;
  uint64_t* keys;  // [capacity of survivors] for sorting long results

  static int64_t level_total(const CascadePlan& plan, int parts) {
    int64_t total = 0;
    for (int l = 0; l < plan.levels; ++l) total += parts * plan.level_capacity[l];
    return total;
  }
  static int64_t survivor_total(const CascadePlan& plan, int parts) {
    const int64_t total = level_total(plan, parts) + parts * plan.final_capacity;
    return total > plan.sample_size ? total : plan.sample_size;
  }
  static int64_t bytes(const CascadePlan& plan, int parts) {
    const int64_t level = level_total(plan, parts), all = survivor_total(plan, parts);
    const int64_t total =
        2 * List::bytes(plan.rows, level) + List::bytes(plan.rows, all) + Scratch::bytes(all) + (all + 16) * 8;
    return (total + 127) & ~int64_t{63};
  }
  static Workspace at(char* memory, const CascadePlan& plan, int parts) {
    const int64_t level = level_total(plan, parts), all = survivor_total(plan, parts);
    Workspace w;
    w.keys = reinterpret_cast<uint64_t*>(memory);
    memory += (all + 16) * 8;
    w.undecided = list_at(memory, plan.rows, level);
    memory += List::bytes(plan.rows, level);
    w.carried = list_at(memory, plan.rows, level);
    memory += List::bytes(plan.rows, level);
    w.survivors = list_at(memory, plan.rows, all);
    memory += List::bytes(plan.rows, all);
    w.scratch = scratch_at(memory, all);
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
    const auto cut_at = [&](int64_t rank) { return mth_best(sample.row(judge), sample.index, sample.n, rank, scratch); };
    brackets[l] = {cut_nothing(), cut_everything()};
    if (plan.certain_rank[l] > 0 && plan.certain_rank[l] <= sample.n) brackets[l].certain = cut_at(plan.certain_rank[l]);
    if (plan.certain_rank[l] > sample.n) brackets[l].certain = cut_everything();
    if (plan.possible_rank[l] < sample.n) brackets[l].possible = cut_at(plan.possible_rank[l]);
    keep_best(sample, plan.rows, judge, plan.middle_rank[l], scratch);
  }
}

// Split `carried` at a bracket: the certain stay, the undecided move to the end of `aside`, the rest is dropped.
inline void pass_carried(List& carried, int rows, int judge, Bracket bracket, List& aside) {
  int64_t kept = 0;
  for (int64_t i = 0; i < carried.n; i += W) {
    const F score = load(carried.row(judge) + i);
    const I place = load(carried.index + i);
    const Mask lanes = first_lanes(carried.n - i);
    const Mask sure = within(score, place, bracket.certain) & lanes;
    const Mask maybe = static_cast<Mask>(within(score, place, bracket.possible) & lanes & ~sure);
    for (int r = 0; r < rows; ++r) {
      const F value = load(carried.row(r) + i);
      store(aside.row(r) + aside.n, compress(maybe, value));
      store(carried.row(r) + kept, compress(sure, value));
    }
    store(aside.index + aside.n, compress(maybe, place));
    store(carried.index + kept, compress(sure, place));
    aside.n += count(maybe);
    kept += count(sure);
  }
  carried.n = kept;
}

// Settle the levels exactly: `w.survivors` becomes what is alive after level L. False when a bracket missed.
inline bool settle_levels(const CascadePlan& plan, const Collected* parts, int num_parts, const Bracket* brackets,
                          Workspace& w) {
  for (int p = 0; p < num_parts; ++p)
    if (*parts[p].last < 0) return false;
  w.carried.n = 0;
  for (int l = 0; l < plan.levels; ++l) {
    const int judge = plan.row_of_stage[l];
    w.undecided.n = 0;
    int64_t certain = 0;
    for (int p = 0; p < num_parts; ++p) {
      certain += parts[p].certain[l];
      extend(w.undecided, parts[p].level_list(plan, l), plan.rows);
    }
    pass_carried(w.carried, plan.rows, judge, brackets[l], w.undecided);
    certain += w.carried.n;
    const int64_t places = plan.keep[l] - certain;
    const bool dropped_some = !(brackets[l].possible.score == -__builtin_inff() && brackets[l].possible.index == INT32_MAX);
    if (places < 0 || (w.undecided.n < places && dropped_some)) return false;
    if (places == 0) w.undecided.n = 0;
    keep_best(w.undecided, plan.rows, judge, places, w.scratch);
    extend(w.carried, w.undecided, plan.rows);
  }
  w.survivors.n = 0;
  for (int p = 0; p < num_parts; ++p) extend(w.survivors, parts[p].level_list(plan, plan.levels), plan.rows);
  extend(w.survivors, w.carried, plan.rows);
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
    if (s == last && w.survivors.n <= SMALL) break;  // emit ranks them all
    keep_best(w.survivors, plan.rows, plan.row_of_stage[s], plan.keep[s], w.scratch);
  }
  emit(w.survivors, plan.row_of_stage[last], k, w.keys, args.indices + q * k, args.scores + q * k);
}

}  // namespace CPR_ISA_NAMESPACE
}  // namespace cpr
