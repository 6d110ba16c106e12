// What queries collect where scores are coarse, in 16 bits a number: half as much to write, to pass from core
// to core and to read again. Scores lie on a grid of their own for each query and row; what that rounds away
// is part of their error. Those past the grid's upper end are taken for its end: no cut between them is found
// without scoring them all again, so that order is kept.
#pragma once
#include "filter.h"

namespace cpr {
namespace CPR_ISA_NAMESPACE {

constexpr float TOP_CODE = 65535;    // 2^16 - 1
constexpr float HEADROOM = 1.0625f;  // above the highest score there can be so far: a longer key may come,
                                     // and a step must never be lost in a score's last bits
constexpr float OFF_GRID = 0.55f;    // steps that a score is off at most, with what its arithmetic rounds
constexpr float MARGIN_CODES = 8;    // at both ends of the grid

// Code c stands for the score low + c * step.
struct Grid {
  float low, step;
  float scale, offset;  // code = score * scale + offset

  // Of scores up to `reach` in size, of which those below `least` do not matter.
  static Grid over(float least, float reach) {
    const float high = HEADROOM * reach;
    const float low = least > -high ? least : -high;
    const float step = (high - low) / (TOP_CODE - 2 * MARGIN_CODES);
    const float start = low - MARGIN_CODES * step;
    return {start, step, 1 / step, -start / step};
  }
  // Whether its arithmetic stays clear of denormals.
  bool serves() const { return step > 1e-30f; }
  float code(float score) const { return __builtin_fmaf(score, scale, offset); }
  float score(float code) const { return __builtin_fmaf(code, step, low); }
  F scores(I codes) const { return fma(to_float(codes), set1(step), set1(low)); }
  I codes(F scores) const {  // NaN is 0
    return to_whole(min(max(fma(scores, set1(scale), set1(offset)), zero()), set1(TOP_CODE)));
  }
  // Cuts with scores on the grid, so that codes tell what scores would; a cut that takes all or nothing
  // stays.
  void snap(Bracket& bracket) const {
    if (bracket.certain.score == bracket.certain.score)
      bracket.certain = {score(__builtin_ceilf(code(bracket.certain.score))), INT32_MAX};
    if (!drops_nothing(bracket))
      bracket.possible = {score(__builtin_floorf(code(bracket.possible.score))), INT32_MAX};
  }
  // The least code within a cut that was snapped.
  int32_t least_within(Cut cut) const {
    if (cut.score != cut.score) return INT32_MAX;
    return cut.score == -__builtin_inff() ? 0 : static_cast<int32_t>(__builtin_rintf(code(cut.score)));
  }
};

// As List, in codes.
struct CodeList {
  uint16_t* scores;
  uint16_t* index;
  int64_t capacity;
  uint16_t* row(int r) const { return scores + r * (capacity + W); }
};

inline CodeList codes_of(const Collected& collected, const CascadePlan& plan) {
  uint16_t* const scores = reinterpret_cast<uint16_t*>(collected.memory);
  return {scores, scores + plan.rows * (plan.list_capacity + W), plan.list_capacity};
}

// As `collect`, of R rows and L levels (-1: many).
template <int R, int L>
inline void collect_codes(const CascadePlan& plan, const Panel& panel, int64_t q, const Bracket* brackets,
                          const Grid* grids, const float* const* rows, const Eligibility& eligible,
                          const Collected& out) {
  const bool all = eligible.everything();
  const CodeList list = codes_of(out, plan);
  const int levels = L < 0 ? plan.levels : L;
  constexpr int ROOM = L < 0 ? MAX_LEVELS : L;
  int row_of[ROOM];
  I certain_from[ROOM], possible_from[ROOM];
  int64_t counts[ROOM] = {};
  for (int l = 0; l < levels; ++l) {
    row_of[l] = plan.row_of_stage[l];
    certain_from[l] = set1(grids[row_of[l]].least_within(brackets[l].certain));
    possible_from[l] = set1(grids[row_of[l]].least_within(brackets[l].possible));
  }
  Grid grid[R];
  for (int r = 0; r < R; ++r) grid[r] = grids[r];
  int64_t n = *out.length;
  for (int64_t i = 0; i < panel.count; i += W) {
    const I place = iota(static_cast<int32_t>(panel.first + i));
    Mask alive = all ? first_lanes(panel.count - i) : eligible.lanes(panel, q, i), keep = 0;
    alive = without_nan(alive, R, [&](int r) __attribute__((always_inline)) { return load(rows[r] + i); });
    I codes[R];
#pragma GCC unroll 3
    for (int r = 0; r < R; ++r) codes[r] = grid[r].codes(load(rows[r] + i));
#pragma GCC unroll 4
    for (int l = 0; l < levels; ++l) {
      I code = codes[0];
      if (R > 1 && row_of[l] == 1) code = codes[R > 1 ? 1 : 0];
      if (R > 2 && row_of[l] == 2) code = codes[R > 2 ? 2 : 0];
      const Mask sure = alive & le(certain_from[l], code);
      keep = static_cast<Mask>(keep | (alive & le(possible_from[l], code) & ~sure));
      alive = sure;
      counts[l] += count(sure);
    }
    keep = static_cast<Mask>(keep | alive);
    const I order = front_order(keep);
    for (int r = 0; r < R; ++r) store_short(list.row(r) + n, ordered(order, codes[r]));
    store_short(list.index + n, ordered(order, place));
    n += count(keep);
  }
  for (int l = 0; l < levels; ++l) out.certain[l] += counts[l];
  *out.length = n;
}

// As `filter_panel`; the brackets are on the grids.
template <int R>
inline void filter_codes(const CascadePlan& plan, const Panel& panel, int64_t q, const Bracket* brackets,
                         const Grid* grids, const float* const* rows, const Eligibility& eligible,
                         const Collected& out) {
  if (!out.takes(panel.count, plan.list_capacity)) return;
  switch (plan.levels) {
    case 1:
      return collect_codes<R, 1>(plan, panel, q, brackets, grids, rows, eligible, out);
    case 2:
      return collect_codes<R, 2>(plan, panel, q, brackets, grids, rows, eligible, out);
    case 3:
      return collect_codes<R, 3>(plan, panel, q, brackets, grids, rows, eligible, out);
    default:
      return collect_codes<R, -1>(plan, panel, q, brackets, grids, rows, eligible, out);
  }
}

}  // namespace CPR_ISA_NAMESPACE
}  // namespace cpr
