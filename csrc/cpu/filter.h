// The streaming half of the cascade: a panel's scores go through the leading stages while they are in cache. Entries
// surely kept move on, entries surely dropped vanish, undecided ones are set aside; all are counted.
#pragma once
#include "cascade_plan.h"
#include "score.h"
#include "select.h"

namespace cpr {
namespace CPR_ISA_NAMESPACE {

struct Bracket {
  Cut certain;
  Cut possible;
};

// What one query has collected from one part of the keys.
struct Collected {
  int64_t* certain;    // [L] entries certainly kept by level l (and certain before)
  int64_t* undecided;  // [L] lengths of the level lists
  int64_t* last;       // length of the final list; -1 after an overflow
  char* lists;

  static int64_t bytes(const CascadePlan& plan) {
    int64_t total = (2 * plan.levels + 2) * 8 + List::bytes(plan.rows, plan.final_capacity);
    for (int l = 0; l < plan.levels; ++l) total += List::bytes(plan.rows, plan.level_capacity[l]);
    return (total + 63) & ~int64_t{63};
  }
  static Collected at(char* memory, const CascadePlan& plan) {
    int64_t* counts = reinterpret_cast<int64_t*>(memory);
    return {counts, counts + plan.levels, counts + 2 * plan.levels, memory + (2 * plan.levels + 2) * 8};
  }
  void clear(const CascadePlan& plan) const {
    for (int l = 0; l < plan.levels; ++l) certain[l] = undecided[l] = 0;
    *last = 0;
  }
  List level_list(const CascadePlan& plan, int level) const {
    char* place = lists;
    for (int l = 0; l < level; ++l) place += List::bytes(plan.rows, plan.level_capacity[l]);
    List list = list_at(place, plan.rows, level == plan.levels ? plan.final_capacity : plan.level_capacity[level]);
    list.n = level == plan.levels ? *last : undecided[level];
    return list;
  }
};

// Which keys of a panel a query may select; ids are compared by 32 hashed bits first.
struct Eligibility {
  const CascadeArgs* args;
  int32_t* hash;     // [count] of the keys' ids
  uint8_t* filled;   // [count] 1: not an empty slot

  static int32_t hash_of(int64_t id) {
    const uint64_t mixed = static_cast<uint64_t>(id) * 0x9E3779B97F4A7C15ull;
    return static_cast<int32_t>(mixed >> 32);
  }
  void load_panel(const Panel& panel) const {
    if (!args->key_ids) return;
    for (int64_t i = 0; i < panel.count; ++i) {
      const int64_t id = args->key_ids[panel.key(i)];
      hash[i] = hash_of(id);
      filled[i] = id >= 0;
    }
  }
  // Lanes [i, i + W) of the panel that query q may select.
  Mask lanes(const Panel& panel, int64_t q, int64_t i) const {
    Mask mask = first_lanes(panel.count - i);
    if (args->key_ids) {
      mask &= from_bytes_nonzero(filled + i);
      if (args->query_ids) {
        const int64_t id = args->query_ids[q];
        Mask same = static_cast<Mask>(eq(load(hash + i), set1(hash_of(id))) & mask);
        for (; same; same = static_cast<Mask>(same & (same - 1))) {
          const int lane = __builtin_ctz(same);
          if (args->key_ids[panel.key(i + lane)] == id) mask = static_cast<Mask>(mask & ~(1u << lane));
        }
      }
    }
    if (args->exclude) {
      const uint8_t* row = args->exclude + q * args->exclude_stride;
      uint8_t bytes[W] = {};
      const uint8_t* here = row + panel.first + i;
      if (panel.which || i + W > panel.count) {
        for (int lane = 0; lane < W && i + lane < panel.count; ++lane) bytes[lane] = row[panel.key(i + lane)];
        here = bytes;
      }
      mask = static_cast<Mask>(mask & ~from_bytes_nonzero(here));
    }
    return mask;
  }
};

// For keys that all lie on one side of the cut's index, `within` is a plain comparison score >= threshold.
inline float threshold_for(Cut cut, int64_t first, int64_t last, bool* straddles) {
  if (last <= cut.index) return cut.score;
  if (first <= cut.index) *straddles = true;
  if (cut.score == __builtin_inff()) return __builtin_nanf("");
  if (!(cut.score == cut.score)) return cut.score;
  return __builtin_nextafterf(cut.score, __builtin_inff());
}

// The eligible entries of a panel for query q: rows and index compacted in place. Returns how many.
template <int R>
inline int64_t take_eligible(float* const* rows, int num_rows, int32_t* index, const Panel& panel, int64_t q,
                             const Eligibility& eligible) {
  const int n_rows = R ? R : num_rows;
  int64_t kept = 0;
  for (int64_t i = 0; i < panel.count; i += W) {
    Mask mask = eligible.lanes(panel, q, i);
    for (int r = 0; r < n_rows; ++r) {
      const F score = load(rows[r] + i);
      mask = static_cast<Mask>(mask & ~unordered(score, score));
    }
    const I place = panel.which ? load(panel.which + i) : iota(static_cast<int32_t>(panel.first + i));
    if (mask == ALL && kept == i) {
      store(index + i, place);
    } else {
      for (int r = 0; r < n_rows; ++r) store(rows[r] + kept, compress(mask, load(rows[r] + i)));
      store(index + kept, compress(mask, place));
    }
    kept += count(mask);
  }
  return kept;
}

// One level: the certainly kept stay in place (their number is returned), the undecided are appended to `aside`.
template <int R, bool EXACT>
inline int64_t pass_level(float* const* rows, int num_rows, int32_t* index, int64_t n, int judge, Bracket bracket,
                          float certain_from, float possible_from, List& aside) {
  const int n_rows = R ? R : num_rows;
  const F certain_threshold = set1(certain_from), possible_threshold = set1(possible_from);
  int64_t kept = 0;
  for (int64_t i = 0; i < n; i += W) {
    const F score = load(rows[judge] + i);
    const I place = load(index + i);
    const Mask lanes = first_lanes(n - i);
    Mask sure, maybe;
    if (EXACT) {
      sure = within(score, place, bracket.certain) & lanes;
      maybe = static_cast<Mask>(within(score, place, bracket.possible) & lanes & ~sure);
    } else {
      sure = ge(score, certain_threshold) & lanes;
      maybe = static_cast<Mask>(ge(score, possible_threshold) & lanes & ~sure);
    }
    if (maybe) {
      for (int r = 0; r < n_rows; ++r) store(aside.row(r) + aside.n, compress(maybe, load(rows[r] + i)));
      store(aside.index + aside.n, compress(maybe, place));
      aside.n += count(maybe);
      if (aside.n > aside.capacity) {
        aside.n = -1;
        return 0;
      }
    }
    for (int r = 0; r < n_rows; ++r) store(rows[r] + kept, compress(sure, load(rows[r] + i)));
    store(index + kept, compress(sure, place));
    kept += count(sure);
  }
  return kept;
}

// A panel's scores of query q through every level into what the query has collected. `index` has room for the panel.
template <int R>
inline void filter_panel(const CascadePlan& plan, const Panel& panel, int64_t q, const Bracket* brackets,
                         float* const* rows, int32_t* index, const Eligibility& eligible, const Collected& out) {
  const int n_rows = R ? R : plan.rows;
  if (*out.last < 0) return;
  int64_t n = take_eligible<R>(rows, n_rows, index, panel, q, eligible);
  for (int l = 0; l < plan.levels && n > 0; ++l) {
    List aside = out.level_list(plan, l);
    const int64_t first = index[0], last = index[n - 1];
    bool straddles = false;
    const float certain_from = threshold_for(brackets[l].certain, first, last, &straddles);
    const float possible_from = threshold_for(brackets[l].possible, first, last, &straddles);
    const int judge = plan.row_of_stage[l];
    n = straddles ? pass_level<R, true>(rows, n_rows, index, n, judge, brackets[l], 0, 0, aside)
                  : pass_level<R, false>(rows, n_rows, index, n, judge, brackets[l], certain_from, possible_from, aside);
    if (aside.n < 0) {
      *out.last = -1;
      return;
    }
    out.undecided[l] = aside.n;
    out.certain[l] += n;
  }
  const List final_list = out.level_list(plan, plan.levels);
  if (final_list.n + n > final_list.capacity) {
    *out.last = -1;
    return;
  }
  for (int r = 0; r < n_rows; ++r)
    std::memcpy(final_list.row(r) + final_list.n, rows[r], sizeof(float) * static_cast<size_t>(n));
  std::memcpy(final_list.index + final_list.n, index, sizeof(int32_t) * static_cast<size_t>(n));
  *out.last += n;
}

}  // namespace CPR_ISA_NAMESPACE
}  // namespace cpr
