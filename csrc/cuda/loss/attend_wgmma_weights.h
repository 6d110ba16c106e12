// From a step's products by wgmma to weights: what is known of its keys, and what each is worth in the sums
// of attend_wgmma.h.
//
// A key's features are its planes times 2^exponent, so that its weight in the sums is 2^(logit + exponent),
// logits to base two. Weights and sums are in units of a power of two of their row, which only grows, at
// least so that no weight is above 2^HEADROOM: float16 planes of weights keep 2^-40 of the largest.
#pragma once
#include "attend_weights.h"

namespace cpr {

constexpr float HEADROOM = 15.0f, LOG2_E = 1.44269504f, LEAST = -3.402823466e38f, MOST = 3.402823466e38f;

// Two columns of a thread: a score is a product times `factor`, 2^exponent, and `shift` is the exponent;
// -inf where the key takes part in nothing, NaN where it is odd.
struct alignas(16) ColumnPair {
  float factor[2], shift[2];
};
struct StepFacts {
  ColumnPair pairs[ATTEND_WGMMA_KEYS / 2];
  int64_t id[ATTEND_WGMMA_KEYS];
  uint32_t unusual;  // is an exponent that takes part?
};

// A warp says what is known of the keys from `first` on, ids -1 and 0 as in score.h.
CPR_DEVICE void write_facts(const AttendArgs& args, uint32_t first, uint32_t end, StepFacts& facts) {
  const int lane = thread_index() & 31;
  bool unusual = false;
#pragma unroll
  for (int i = 0; i < ATTEND_WGMMA_KEYS / 32; ++i) {
    const int key = lane + 32 * i;
    const uint32_t at = first + static_cast<uint32_t>(key);
    const int exponent = at < end ? args.columns.exponents[at] : 0;
    const int64_t id = at < end && args.column_ids ? args.column_ids[at] : 0;
    const bool takes = at < end && id >= 0, odd = exponent == ODD;
    unusual = unusual || (takes && !odd && !usual(exponent));
    ColumnPair& pair = facts.pairs[key / 2];
    pair.factor[key % 2] = usual(exponent) ? power_of_two(exponent) : 1.0f;
    pair.shift[key % 2] =
        !takes ? float_of(0xFF800000u) : (odd ? float_of(0x7FC00000u) : static_cast<float>(exponent));
    facts.id[key] = id;
  }
  const uint32_t any = ballot(unusual);
  if (lane == 0) facts.unusual = any;
}

// What a lane has summed for its two rows, to base two: `mass` in units of 2^top, the features' sums in units
// of 2^(top + excess); there is no excess as long as all exponents are usual ones.
struct RowSums {
  float top[2] = {LEAST, LEAST}, excess[2] = {0.0f, 0.0f}, mass[2] = {0.0f, 0.0f};
};

// Pairs of one source are left out.
CPR_DEVICE void leave_siblings_out(const StepFacts& facts, const LaneRows& rows, float (&logits)[16][4]) {
  const int column0 = (thread_index() & 3) * 2;
#pragma unroll
  for (int n = 0; n < 16; ++n)
#pragma unroll
    for (int c = 0; c < 4; ++c)
      if (facts.id[column0 + n * 8 + c % 2] == rows.id[c / 2]) logits[n][c] = float_of(0xFF800000u);
}

// Products become weights, where all exponents are usual; returns by what the sums so far shrink. `of_row`:
// logits to base two a product.
CPR_DEVICE void weigh_usual(const AttendArgs& args, const StepFacts& facts, const LaneRows& rows,
                            const float (&of_row)[2], RowSums& sums, float (&weights)[16][4],
                            float (&shrink)[2]) {
  const ColumnPair* pairs = facts.pairs + (thread_index() & 3);
#pragma unroll
  for (int n = 0; n < 16; ++n) {
    const ColumnPair pair = pairs[n * 4];
#pragma unroll
    for (int c = 0; c < 4; ++c)
      weights[n][c] = fused(product(weights[n][c], pair.factor[c % 2]), of_row[c / 2], pair.shift[c % 2]);
  }
  if (args.siblings == 2) leave_siblings_out(facts, rows, weights);
  float mass[2] = {0.0f, 0.0f};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float most = weights[0][2 * half];
#pragma unroll
    for (int n = 0; n < 16; ++n) most = fmaxf(most, fmaxf(weights[n][2 * half], weights[n][2 * half + 1]));
    const float top = fmaxf(sums.top[half], row_maximum(most) - HEADROOM);
    shrink[half] = fast_exp2(sums.top[half] - top);
    sums.top[half] = top;
  }
#pragma unroll
  for (int n = 0; n < 16; ++n) {
    const Two factors = *reinterpret_cast<const Two*>(pairs[n * 4].factor);
    const float inverse[2] = {float_of(0x7F000000u - bits_of(factors.of[0])),
                              float_of(0x7F000000u - bits_of(factors.of[1]))};
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      weights[n][c] = fast_exp2(weights[n][c] - sums.top[c / 2]);
      mass[c / 2] = fused(weights[n][c], inverse[c % 2], mass[c / 2]);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) sums.mass[half] = fused(sums.mass[half], shrink[half], mass[half]);
}

// The same of any exponents: NaN where a score overflows or a row is odd.
CPR_DEVICE void weigh_any(const AttendArgs& args, const StepFacts& facts, const LaneRows& rows, RowSums& sums,
                          float (&weights)[16][4], float (&shrink)[2]) {
  const ColumnPair* pairs = facts.pairs + (thread_index() & 3);
  const float to_logits = args.scale * LOG2_E, nothing = float_of(0xFF800000u);
#pragma unroll
  for (int n = 0; n < 16; ++n)
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const float shift = pairs[n * 4].shift[c % 2];
      const bool odd = unordered(shift, shift) || rows.exponent[c / 2] == ODD;
      float score = float_of(0x7FC00000u);
      if (!odd && shift != nothing)
        score = scaled(weights[n][c], rows.exponent[c / 2] + static_cast<int>(shift));
      float logit = fused(score, 0.0f, score) * to_logits;
      if (logit > MOST) logit = MOST;
      if (logit < LEAST) logit = LEAST;
      weights[n][c] = shift == nothing ? nothing : logit;
    }
  if (args.siblings == 2) leave_siblings_out(facts, rows, weights);
  float most[2] = {nothing, nothing}, largest[2] = {nothing, nothing};
#pragma unroll
  for (int n = 0; n < 16; ++n)
#pragma unroll
    for (int c = 0; c < 4; ++c) most[c / 2] = fmaxf(most[c / 2], weights[n][c]);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float top = fmaxf(sums.top[half], row_maximum(most[half]));
    shrink[half] = sums.top[half] - top;
    sums.mass[half] *= fast_exp2(shrink[half]);
    sums.top[half] = top;
  }
#pragma unroll
  for (int n = 0; n < 16; ++n)
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const float logit =
          weights[n][c] - sums.top[c / 2];  // differences first: exponents are small beside logits
      sums.mass[c / 2] += fast_exp2(logit);
      weights[n][c] = logit == nothing ? nothing : logit + pairs[n * 4].shift[c % 2];
      largest[c / 2] = fmaxf(largest[c / 2], weights[n][c]);
    }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float before = sums.excess[half] + shrink[half];
    sums.excess[half] = fmaxf(before, row_maximum(largest[half]) - HEADROOM);
    shrink[half] = fast_exp2(before - sums.excess[half]);
  }
#pragma unroll
  for (int n = 0; n < 16; ++n)
#pragma unroll
    for (int c = 0; c < 4; ++c) weights[n][c] = fast_exp2(weights[n][c] - sums.excess[c / 2]);
}

}  // namespace cpr
