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

// A lane's two rows; their ids are read when they are wanted, for registers are short.
struct StepRows {
  uint32_t at[2];  // rows beyond the end repeat the last one
  int exponent[2];

  CPR_DEVICE StepRows(const AttendArgs& args, uint32_t first) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t row = first + static_cast<uint32_t>(8 * half);
      at[half] = row < args.num_rows ? row : args.num_rows - 1;
      exponent[half] = args.rows.exponents[at[half]];
    }
  }
  CPR_DEVICE int64_t id(const AttendArgs& args, int half) const {
    return args.row_ids ? args.row_ids[at[half]] : -1;
  }
};

// Pairs of one source are left out: they become `absent`.
CPR_DEVICE void leave_siblings_out(const AttendArgs& args, const StepFacts& facts, const StepRows& rows,
                                   float absent, float (&logits)[16][4]) {
  const int64_t* of_columns = facts.id + (thread_index() & 3) * 2;
  uint32_t same[2] = {0, 0};  // bit 2 n + i: column i of piece n
  int64_t ids[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) ids[half] = rows.id(args, half);
#pragma unroll 1
  for (int bit = 0; bit < 32; ++bit) {
    const int64_t id = of_columns[bit / 2 * 8 + bit % 2];
    if (id == ids[0]) same[0] |= 1u << bit;
    if (id == ids[1]) same[1] |= 1u << bit;
  }
#pragma unroll
  for (int n = 0; n < 16; ++n)
#pragma unroll
    for (int c = 0; c < 4; ++c)
      if (same[c / 2] >> (2 * n + c % 2) & 1u) logits[n][c] = absent;
}

// Products become weights, where all exponents are usual; returns by what the sums so far shrink. `of_row`:
// logits to base two a product.
CPR_DEVICE void weigh_usual(const AttendArgs& args, const StepFacts& facts, const StepRows& rows,
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
  if (args.siblings == 2) leave_siblings_out(args, facts, rows, float_of(0xFF800000u), weights);
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

// Products become scores, of any exponents: NaN where one overflows or a row is odd, and where a key takes
// part in nothing.
CPR_DEVICE void form_scores(const StepFacts& facts, const StepRows& rows, float (&products)[16][4]) {
  const ColumnPair* pairs = facts.pairs + (thread_index() & 3);
  for_each_four(products, [&](float(&four)[4], int n) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const float shift = pairs[n * 4].shift[c % 2];
      const bool odd = unordered(shift, shift) || rows.exponent[c / 2] == ODD;
      float score = float_of(0x7FC00000u);
      if (!odd && shift != float_of(0xFF800000u))
        score = scaled(four[c], rows.exponent[c / 2] + static_cast<int>(shift));
      four[c] = fused(score, 0.0f, score);
    }
  });
}

// The statistics of a step: of products where all exponents are usual, else of scores. Nothing changes but
// pairs of one source, where those are left out: they are NaN until they weigh nothing.
template <class R>
CPR_DEVICE void rank_step(const AttendArgs& args, const StepFacts& facts, const StepRows& rows,
                          uint32_t first, bool all_usual, R& ranks, float (&products)[16][4]) {
  const uint32_t column0 = static_cast<uint32_t>(thread_index() & 3) * 2;
  const ColumnPair* pairs = facts.pairs + column0 / 2;
  if (args.siblings == 2) leave_siblings_out(args, facts, rows, float_of(0x7FC00000u), products);
  float of_row[2] = {1.0f, 1.0f};
  if (all_usual) of_row[0] = power_of_two(rows.exponent[0]), of_row[1] = power_of_two(rows.exponent[1]);
#pragma unroll
  for (uint32_t n = 0; n < 16; ++n) {
    const ColumnPair pair = pairs[n * 4];
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
      const float factor = all_usual ? pair.factor[i] : 1.0f,
                  absent = pair.shift[i] - pair.shift[i];  // NaN where a key takes part in nothing, else 0
      const uint32_t column = first + column0 + n * 8 + i;
      ranks.template add<0>(fused(product(products[n][i], factor), of_row[0], absent), column);
      ranks.template add<1>(fused(product(products[n][2 + i], factor), of_row[1], absent), column);
    }
  }
  forget_loads();  // registers are short
}

// Scores of form_scores become weights, as products of usual exponents do.
CPR_DEVICE void weigh_any(const AttendArgs& args, const StepFacts& facts, const StepRows& rows, RowSums& sums,
                          float (&weights)[16][4], float (&shrink)[2]) {
  const ColumnPair* pairs = facts.pairs + (thread_index() & 3);
  const int64_t* ids = facts.id + (thread_index() & 3) * 2;
  const float to_logits = args.scale * LOG2_E, nothing = float_of(0xFF800000u);
  const bool left_out = args.siblings == 2;
  const int64_t own[2] = {rows.id(args, 0), rows.id(args, 1)};
  float most[2] = {nothing, nothing}, largest[2] = {nothing, nothing};
  for_each_four(weights, [&](float(&four)[4], int n) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      float logit = four[c] * to_logits;
      if (logit > MOST) logit = MOST;
      if (logit < LEAST) logit = LEAST;
      const bool sibling = left_out && ids[n * 8 + c % 2] == own[c / 2];
      four[c] = sibling || pairs[n * 4].shift[c % 2] == nothing ? nothing : logit;
      most[c / 2] = fmaxf(most[c / 2], four[c]);
    }
  });
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float top = fmaxf(sums.top[half], row_maximum(most[half]));
    shrink[half] = sums.top[half] - top;
    sums.mass[half] *= fast_exp2(shrink[half]);
    sums.top[half] = top;
  }
  for_each_four(weights, [&](float(&four)[4], int n) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const float logit = four[c] - sums.top[c / 2];  // differences first: exponents are small beside logits
      sums.mass[c / 2] += fast_exp2(logit);
      four[c] = logit == nothing ? nothing : logit + pairs[n * 4].shift[c % 2];
      largest[c / 2] = fmaxf(largest[c / 2], four[c]);
    }
  });
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float before = sums.excess[half] + shrink[half];
    sums.excess[half] = fmaxf(before, row_maximum(largest[half]) - HEADROOM);
    shrink[half] = fast_exp2(before - sums.excess[half]);
  }
  for_each_four(weights, [&](float(&four)[4], int) {
#pragma unroll
    for (int c = 0; c < 4; ++c) four[c] = fast_exp2(four[c] - sums.excess[c / 2]);
  });
}

}  // namespace cpr
