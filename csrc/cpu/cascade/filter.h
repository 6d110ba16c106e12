// The streaming half of the cascade: a panel's scores meet the brackets of the leading stages while they are
// in cache. Entries that a stage surely drops vanish, having been counted where they were certain; all others
// are collected.
#pragma once
#include "../../cascade_topk.h"
#include "../ids.h"
#include "../scores/float32.h"
#include "../select/nth_best.h"
#include "plan.h"

namespace cpr {
namespace CPR_ISA_NAMESPACE {

constexpr int UNROLLED_LEVELS = 4;  // more levels take a loop

// Where a level's threshold almost surely lies: entries within `certain` stay, entries not within `possible`
// go.
struct Bracket {
  Cut certain;
  Cut possible;
};

inline bool drops_nothing(const Bracket& bracket) {
  return bracket.possible.index == INT32_MAX && bracket.possible.score == -__builtin_inff();
}

// What one query has collected from one part of the keys: every entry that is certain at all levels or
// undecided at one, and for each level how many entries were certain at it and all before, collected or not.
struct Collected {
  int64_t* certain;  // [L]
  int64_t* length;   // of the list; -1 after an overflow
  char* memory;

  // In float32; where codes follow, half of what fits in codes.
  static int64_t capacity(const CascadePlan& plan) {
    return plan.int16_lists ? (plan.list_capacity + SHORTS) / 2 : plan.list_capacity;
  }
  static int64_t bytes(const CascadePlan& plan) {
    return ((plan.levels + 1) * 8 + List::bytes(plan.rows, capacity(plan)) + 63) & ~int64_t{63};
  }
  static Collected at(char* memory, const CascadePlan& plan) {
    int64_t* counts = reinterpret_cast<int64_t*>(memory);
    return {counts, counts + plan.levels, memory + (plan.levels + 1) * 8};
  }
  // Whether so many more fit; if not, the list counts as overflown.
  bool takes(int64_t more, int64_t room) const {
    if (*length >= 0 && *length + more > room) *length = -1;
    return *length >= 0;
  }
  void clear(const CascadePlan& plan) const {
    for (int l = 0; l < plan.levels; ++l) certain[l] = 0;
    *length = 0;
  }
  List list(const CascadePlan& plan) const {
    List entries = list_at(memory, plan.rows, capacity(plan));
    entries.n = *length;
    return entries;
  }
};

// Which keys of a panel a query may select; ids are compared by 32 hashed bits first.
struct Eligibility {
  const CascadeArgs* args;
  int32_t* hash;             // [count] of the keys' ids
  uint8_t* filled;           // [count] 1: not an empty slot
  int16_t* whole = nullptr;  // [count, and up to a whole tile] -1: not an empty slot, nor NaN; only for codes

  bool everything() const { return !args->key_ids && !args->exclude; }

  void load_panel(const Panel& panel) const {
    if (!args->key_ids) return;
    for (int64_t i = 0; i < panel.count; ++i) {
      const int64_t id = args->key_ids[panel.key(i)];
      hash[i] = hash_of(id);
      filled[i] = id >= 0;
    }
  }
  // As yet without what CodeProducts finds to be NaN.
  void load_whole(const Panel& panel) const {
    for (int64_t i = 0; i < panel.count; ++i) whole[i] = !args->key_ids || filled[i] ? -1 : 0;
    for (int64_t i = panel.count; i % TILE; ++i) whole[i] = 0;
  }
  // Of lanes [i, i + W) of the panel, those that have the query's own id.
  Mask own(const Panel& panel, int64_t q, int64_t i) const {
    const int64_t id = args->query_ids[q];
    Mask same = static_cast<Mask>(eq(load(hash + i), set1(hash_of(id))) & first_lanes(panel.count - i));
    Mask found = 0;
    for (; same; same = static_cast<Mask>(same & (same - 1))) {
      const int lane = __builtin_ctz(same);
      if (args->key_ids[panel.key(i + lane)] == id) found = static_cast<Mask>(found | (1u << lane));
    }
    return found;
  }
  // Lanes [i, i + W) of the panel that query q may select.
  Mask lanes(const Panel& panel, int64_t q, int64_t i) const {
    Mask mask = first_lanes(panel.count - i);
    if (args->key_ids) {
      mask &= from_bytes_nonzero(filled + i);
      if (args->query_ids) mask = static_cast<Mask>(mask & ~own(panel, q, i));
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
  // Of lanes [i, i + SHORTS) of the panel, a bit for each that has the query's own id.
  __attribute__((noinline)) uint32_t own_codes(const Panel& panel, int64_t q, int64_t i) const {
    uint32_t found = 0;
    for (int part = 0; part < SHORTS && i + part < panel.count; part += W)
      found |= static_cast<uint32_t>(own(panel, q, i + part)) << part;
    return found;
  }
};

// For keys that all lie on one side of the cut's index, `within` is a plain comparison score >= threshold.
inline float threshold_for(Cut cut, const Panel& panel, bool* straddles) {
  const int64_t first = panel.key(0), last = panel.key(panel.count - 1);
  if (last <= cut.index) return cut.score;
  if (first <= cut.index) *straddles = true;
  if (cut.score == __builtin_inff()) return __builtin_nanf("");
  if (!(cut.score == cut.score)) return cut.score;
  return __builtin_nextafterf(cut.score, __builtin_inff());
}

// The brackets of a query as one panel sees them.
struct PanelBrackets {
  const Bracket* exact;
  float certain[MAX_LEVELS], possible[MAX_LEVELS];
  const float* judge[MAX_LEVELS];  // the level's score row
  bool straddles = false;

  PanelBrackets(const CascadePlan& plan, const Bracket* brackets, const Panel& panel,
                const float* const* rows)
      : exact(brackets) {
    for (int l = 0; l < plan.levels; ++l) {
      certain[l] = threshold_for(brackets[l].certain, panel, &straddles);
      possible[l] = threshold_for(brackets[l].possible, panel, &straddles);
      judge[l] = rows[plan.row_of_stage[l]];
    }
  }
};

// Panel entries of query q that may still matter, appended to its list; R rows (0: plan.rows), L levels (-1:
// many). EXACT compares by (score, index), for the few panels that hold a cut's own index.
template <int R, int L, bool EXACT>
inline void collect(const CascadePlan& plan, const Panel& panel, int64_t q, const PanelBrackets& brackets,
                    const float* const* rows, const Eligibility& eligible, const Collected& out) {
  const int n_rows = R ? R : plan.rows;
  const bool all = eligible.everything();
  const List list = out.list(plan);
  const int levels = L < 0 ? plan.levels : L;
  constexpr int ROOM = L < 0 ? MAX_LEVELS : (L ? L : 1);
  F certain_from[ROOM], possible_from[ROOM];
  int64_t counts[ROOM] = {};
  for (int l = 0; l < levels; ++l) {
    certain_from[l] = set1(brackets.certain[l]);
    possible_from[l] = set1(brackets.possible[l]);
  }
  int64_t n = list.n;
  for (int64_t i = 0; i < panel.count; i += W) {
    const I place = panel.which ? load(panel.which + i) : iota(static_cast<int32_t>(panel.first + i));
    Mask alive = all ? first_lanes(panel.count - i) : eligible.lanes(panel, q, i), keep = 0;
    alive = without_nan(
        alive, n_rows, [&](int r) __attribute__((always_inline)) { return load(rows[r] + i); });
#pragma GCC unroll 4
    for (int l = 0; l < levels; ++l) {
      if (L < 0 && alive == 0) break;
      const F score = load(brackets.judge[l] + i);
      const Mask sure =
          alive & (EXACT ? within(score, place, brackets.exact[l].certain) : ge(score, certain_from[l]));
      const Mask maybe =
          alive & (EXACT ? within(score, place, brackets.exact[l].possible) : ge(score, possible_from[l]));
      keep = static_cast<Mask>(keep | (maybe & ~sure));
      alive = sure;
      counts[l] += count(sure);
    }
    keep = static_cast<Mask>(keep | alive);
    const I order = front_order(keep);
    for (int r = 0; r < n_rows; ++r) store(list.row(r) + n, ordered(order, load(rows[r] + i)));
    store(list.index + n, ordered(order, place));
    n += count(keep);
  }
  for (int l = 0; l < levels; ++l) out.certain[l] += counts[l];
  *out.length = n;
}

template <int R, int L>
inline void filter_levels(const CascadePlan& plan, const Panel& panel, int64_t q, const Bracket* brackets,
                          const float* const* rows, const Eligibility& eligible, const Collected& out) {
  const PanelBrackets here(plan, brackets, panel, rows);
  if (L != 0 && here.straddles)
    collect<R, L, true>(plan, panel, q, here, rows, eligible, out);
  else
    collect<R, L, false>(plan, panel, q, here, rows, eligible, out);
}

// A panel's scores of query q into what the query has collected.
template <int R>
inline void filter_panel(const CascadePlan& plan, const Panel& panel, int64_t q, const Bracket* brackets,
                         const float* const* rows, const Eligibility& eligible, const Collected& out) {
  if (!out.takes(panel.count, Collected::capacity(plan))) return;
  switch (plan.levels) {
    case 0:
      return filter_levels<R, 0>(plan, panel, q, brackets, rows, eligible, out);
    case 1:
      return filter_levels<R, 1>(plan, panel, q, brackets, rows, eligible, out);
    case 2:
      return filter_levels<R, 2>(plan, panel, q, brackets, rows, eligible, out);
    case 3:
      return filter_levels<R, 3>(plan, panel, q, brackets, rows, eligible, out);
    case UNROLLED_LEVELS:
      return filter_levels<R, UNROLLED_LEVELS>(plan, panel, q, brackets, rows, eligible, out);
    default:
      return filter_levels<R, -1>(plan, panel, q, brackets, rows, eligible, out);
  }
}

}  // namespace CPR_ISA_NAMESPACE
}  // namespace cpr
