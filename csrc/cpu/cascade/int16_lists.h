// What queries collect with int16 lists, in 16 bits a number: half as much to write, to pass from core to
// core and to read again, and twice as many in a vector. A score becomes a code by a quantizer of its query
// and row; what that rounds away is part of its error. Scores past an end of the quantizer become its end: no
// cut between them is found without scoring them all again, so that order is kept.
#pragma once
#include "filter.h"

namespace cpr {
namespace CPR_ISA_NAMESPACE {

constexpr int HIGHEST_CODE = 32767, LOWEST_CODE = -32767;
constexpr int NO_CODE = -32768;      // lower than any: of entries that are gone
constexpr float HEADROOM = 1.0625f;  // above the highest score there can be so far: a longer key may come,
                                     // and a step must never be lost in a score's last bits
constexpr float OFF_STEPS = 0.55f;   // steps that a score is off at most, with what its arithmetic rounds
constexpr float MARGIN_CODES = 8;    // at both ends of the quantizer
constexpr float MOST_REACHED =
    1e9f;  // codes that scores may be off the quantizer's middle: they are int32 on the way

// Code c stands for the score low + c * step.
struct Quantizer {
  float step, middle;
  float scale, offset;  // code = score * scale + offset

  // Of scores up to `reach` in size, of which those below `least` do not matter.
  static Quantizer over(float least, float reach) {
    const float high = HEADROOM * reach;
    const float low = least > -high ? least : -high;
    const float step = (high - low) / (2 * (HIGHEST_CODE - MARGIN_CODES)), middle = 0.5f * (high + low);
    return {step, middle, 1 / step, -middle / step};
  }
  // Whether its arithmetic stays clear of denormals.
  bool is_usable() const { return step > 1e-30f; }
  float code(float score) const { return __builtin_fmaf(score, scale, offset); }
  float score(float code) const { return __builtin_fmaf(code, step, middle); }
  // Cuts become scores of codes, rounded outward, so that codes decide as scores would; a cut that takes all
  // or nothing stays.
  void round_outward(Bracket& bracket) const {
    if (bracket.certain.score == bracket.certain.score)
      bracket.certain = {score(__builtin_ceilf(code(bracket.certain.score))), INT32_MAX};
    if (!drops_nothing(bracket))
      bracket.possible = {score(__builtin_floorf(code(bracket.possible.score))), INT32_MAX};
  }
  // The code below those within a cut that was rounded outward.
  int below(Cut cut) const {
    if (cut.score != cut.score) return HIGHEST_CODE;
    if (cut.score == -__builtin_inff()) return NO_CODE;
    const float least = __builtin_rintf(code(cut.score));
    return least > HIGHEST_CODE ? HIGHEST_CODE : least < LOWEST_CODE ? NO_CODE : static_cast<int>(least) - 1;
  }
};

// As List, in codes; indices in 16 bits too.
struct CodeList {
  int16_t* scores;
  uint16_t* index;
  int64_t capacity;
  int64_t n;
  int16_t* row(int r) const { return scores + r * (capacity + SHORTS); }
  static int64_t bytes(int rows, int64_t capacity) { return (rows + 1) * (capacity + SHORTS) * 2; }
};

inline CodeList codes_at(char* memory, int rows, int64_t capacity) {
  int16_t* const scores = reinterpret_cast<int16_t*>(memory);
  return {scores, reinterpret_cast<uint16_t*>(scores + rows * (capacity + SHORTS)), capacity, 0};
}

inline CodeList codes_of(const Collected& collected, const CascadePlan& plan) {
  CodeList codes = codes_at(collected.memory, plan.rows, plan.list_capacity);
  codes.n = *collected.length;
  return codes;
}

// A level's bracket in codes: entries above `certain` stay, entries not above `possible` go.
struct CodeBracket {
  S certain, possible;
  CodeBracket() = default;
  CodeBracket(const Bracket& bracket, const Quantizer& quantizer)
      : certain(set1_code(quantizer.below(bracket.certain))),
        possible(set1_code(quantizer.below(bracket.possible))) {}
};

// As `collect`, of R rows and L levels (-1: many).
template <int R, int L>
inline void collect_codes(const CascadePlan& plan, const Panel& panel, int64_t q, const Bracket* brackets,
                          const Quantizer* quantizers, const int16_t* const* rows,
                          const Eligibility& eligible, const Collected& out) {
  const CodeList list = codes_of(out, plan);
  const int levels = L < 0 ? plan.levels : L;
  constexpr int ROOM = L < 0 ? MAX_LEVELS : L;
  const int16_t* judge[ROOM];
  CodeBracket bracket[ROOM];
  S counts[ROOM];
  for (int l = 0; l < levels; ++l) {
    judge[l] = rows[plan.row_of_stage[l]];
    bracket[l] = {brackets[l], quantizers[plan.row_of_stage[l]]};
    counts[l] = set1_code(0);
  }
  const bool has_own = eligible.args->key_ids && eligible.args->query_ids;
  const int16_t *from[R], *const whole = eligible.whole;  // read once: what is written might be any of it
  int16_t* to[R];
  for (int r = 0; r < R; ++r) {
    from[r] = rows[r];
    to[r] = list.row(r);
  }
  const int64_t first = panel.first, count = panel.count;
  int64_t n = list.n;
  for (int64_t i = 0; i < count; i += SHORTS) {
    On alive = load_codes(whole + i), keep = set1_code(0);
    if (has_own) alive = but_not(alive, on_from_bits(eligible.own_codes(panel, q, i)));
#pragma GCC unroll 4
    for (int l = 0; l < levels; ++l) {
      const S code = load_codes(judge[l] + i);
      const On sure = both(alive, above(code, bracket[l].certain));
      keep = either(keep, but_not(both(alive, above(code, bracket[l].possible)), sure));
      counts[l] = tally(counts[l], sure);
      alive = sure;
    }
    const Front front(either(keep, alive));
    for (int r = 0; r < R; ++r) front.store(to[r] + n, load_codes(from[r] + i));
    front.store(list.index + n, counting_from(first + i));
    n += front.count;
  }
  for (int l = 0; l < levels; ++l) out.certain[l] += total(counts[l]);
  *out.length = n;
}

// As `filter_panel`; the brackets are on the quantizers.
template <int R>
inline void filter_codes(const CascadePlan& plan, const Panel& panel, int64_t q, const Bracket* brackets,
                         const Quantizer* quantizers, const int16_t* const* rows, const Eligibility& eligible,
                         const Collected& out) {
  if (!out.takes(panel.count, plan.list_capacity)) return;
  switch (plan.levels) {
    case 1:
      return collect_codes<R, 1>(plan, panel, q, brackets, quantizers, rows, eligible, out);
    case 2:
      return collect_codes<R, 2>(plan, panel, q, brackets, quantizers, rows, eligible, out);
    case 3:
      return collect_codes<R, 3>(plan, panel, q, brackets, quantizers, rows, eligible, out);
    default:
      return collect_codes<R, -1>(plan, panel, q, brackets, quantizers, rows, eligible, out);
  }
}

}  // namespace CPR_ISA_NAMESPACE
}  // namespace cpr
