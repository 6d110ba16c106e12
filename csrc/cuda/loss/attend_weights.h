// From a tile of products to weights: what is known of its rows and columns, which pairs take part, and what
// each is worth in the sums of attend.h.
#pragma once
#include "../score.h"
#include "attend_ranks.h"

namespace cpr {

constexpr int ATTEND_THREADS = 128;  // 4 warps of 16 rows

struct AttendArgs {
  Operand rows, columns;  // planes padded to DEPTHS, both with exponents
  uint32_t num_rows, num_columns;
  const int64_t* row_ids;     // or null
  const int64_t* column_ids;  // or null
  int siblings;               // 1 positives, 2 left out, 0 negatives
  bool empty_rows;            // ids that may be empty slots are those of the rows, not of the columns
  float scale;                // 1 / temperature
  int dim;
  uint32_t part_columns;         // columns a part, a multiple of ATTEND_COLUMNS; parts are grid.y
  float *top, *mass, *attended;  // sweep: [parts][num_rows], likewise, [parts][num_rows, dim] or null
  const float *grad_loss, *lse_all, *lse_positive;  // keys' gradient: [num_columns]
  const int64_t* positives;                         // [num_columns, num_positives]
  int64_t num_positives;
  float* grad;  // [num_rows, dim]
  int chunks;   // of OUT_DEPTH features, where a block cannot hold all of a row's (attend_wide.h)
  RankRoom ranks;
};

// Of a row's four lanes, in a fixed order.
CPR_DEVICE float row_sum(float sum) {
  sum += shuffle_xor(sum, 1);
  return sum + shuffle_xor(sum, 2);
}
CPR_DEVICE float row_maximum(float most) {
  most = fmaxf(most, shuffle_xor(most, 1));
  return fmaxf(most, shuffle_xor(most, 2));
}

// Calls what is given with each four values of a lane and their number, by the same instructions, for paths
// that are seldom taken: the next four move to where the first were.
template <int PIECES, class Given>
CPR_DEVICE void for_each_four(float (&values)[PIECES][4], const Given& given) {
#pragma unroll 1
  for (int n = 0; n < PIECES; ++n) {
    float four[4] = {values[0][0], values[0][1], values[0][2], values[0][3]};
    given(four, n);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
#pragma unroll
      for (int at = 1; at < PIECES; ++at) values[at - 1][c] = values[at][c];
      values[PIECES - 1][c] = four[c];
    }
  }
}

struct ColumnFacts {
  int64_t id[ATTEND_COLUMNS];
  int exponent[ATTEND_COLUMNS];
  float grad[ATTEND_COLUMNS], all[ATTEND_COLUMNS], positive[ATTEND_COLUMNS];
  uint32_t listed[ATTEND_ROWS];  // bit c: the tile's column c lists this row
};

// Facts of the columns [first, first + ATTEND_COLUMNS) of the tile, by the first threads; ids -1 and 0 as in
// score.h.
template <bool GRADIENT>
CPR_DEVICE void load_facts(const AttendArgs& args, uint32_t first, uint32_t row0, ColumnFacts& facts) {
  if (GRADIENT)
    for (int i = thread_index(); i < ATTEND_ROWS; i += ATTEND_THREADS) facts.listed[i] = 0;
  for (int i = thread_index(); i < ATTEND_COLUMNS; i += ATTEND_THREADS) {
    const uint32_t at = first + static_cast<uint32_t>(i);
    if (at >= args.num_columns) continue;
    facts.id[i] = args.column_ids ? args.column_ids[at] : (args.empty_rows ? -1 : 0);
    facts.exponent[i] = args.columns.exponents[at];
    if (GRADIENT) {
      facts.grad[i] = args.grad_loss[at] * args.scale;
      facts.all[i] = args.lse_all[at];
      facts.positive[i] = args.lse_positive[at];
    }
  }
  if (!GRADIENT) return;
  sync_block();
  for (int64_t i = thread_index(); i < ATTEND_COLUMNS * args.num_positives; i += ATTEND_THREADS) {
    const int64_t column = i / args.num_positives;
    if (first + column >= args.num_columns) break;
    const int64_t row = args.positives[(first + column) * args.num_positives + i % args.num_positives] - row0;
    if (row >= 0 && row < ATTEND_ROWS) shared_or(&facts.listed[row], 1u << column);
  }
}

// A lane's two rows: what they are, and their running sums.
struct LaneRows {
  int64_t id[2];
  int exponent[2];
  float top[2] = {-3.402823466e38f, -3.402823466e38f}, mass[2] = {0.0f, 0.0f};

  CPR_DEVICE LaneRows(const AttendArgs& args, uint32_t first) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t row = first + static_cast<uint32_t>(8 * half),
                     at = row < args.num_rows ? row : args.num_rows - 1;
      id[half] = args.row_ids ? args.row_ids[at] : (args.empty_rows ? 0 : -1);
      exponent[half] = args.rows.exponents[at];
    }
  }
};

// Products of scaled planes become scores: NaN where they overflow or a row is odd, so that the sums they
// take part in are NaN. True where all of the lane's exponents are usual: `of_column` has the powers of two.
CPR_DEVICE bool scale_scores(const ColumnFacts& facts, const LaneRows& rows,
                             float (&scores)[ATTEND_COLUMNS / 8][4],
                             float (&of_column)[ATTEND_COLUMNS / 8][2]) {
  constexpr int N8 = ATTEND_COLUMNS / 8;
  const int column0 = (thread_index() & 3) * 2;
  bool plain = usual(rows.exponent[0]) && usual(rows.exponent[1]);
#pragma unroll
  for (int n = 0; n < N8; ++n)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int exponent = facts.exponent[column0 + n * 8 + i];
      plain = plain && usual(exponent);
      of_column[n][i] = power_of_two(exponent);
    }
  if (plain) {
    const float of_row[2] = {power_of_two(rows.exponent[0]), power_of_two(rows.exponent[1])};
#pragma unroll
    for (int n = 0; n < N8; ++n)
#pragma unroll
      for (int c = 0; c < 4; ++c) scores[n][c] *= of_row[c / 2] * of_column[n][c % 2];
    return true;
  }
  for_each_four(scores, [&](float(&four)[4], int n) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int of_first = rows.exponent[c / 2], of_second = facts.exponent[column0 + n * 8 + c % 2];
      const bool odd = of_first == ODD || of_second == ODD;
      const float score = odd ? float_of(0x7FC00000u) : scaled(four[c], of_first + of_second);
      four[c] = fmaf(score, 0.0f, score);
    }
  });
  return false;
}

// Which of a lane's pairs take part: bit 4 n + c.
CPR_DEVICE uint32_t pairs_taking(const AttendArgs& args, const ColumnFacts& facts, const LaneRows& rows,
                                 uint32_t first, uint32_t end) {
  constexpr int N8 = ATTEND_COLUMNS / 8;
  const uint32_t column0 = static_cast<uint32_t>(thread_index() & 3) * 2;
  uint32_t taking = 0;
#pragma unroll
  for (uint32_t n = 0; n < N8; ++n)
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
      const uint32_t column = column0 + n * 8 + i;
      if (first + column < end && (args.empty_rows || facts.id[column] >= 0)) taking |= 5u << (4 * n + i);
    }
  if (args.empty_rows) taking &= (rows.id[0] >= 0 ? 0x3333u : 0u) | (rows.id[1] >= 0 ? 0xCCCCu : 0u);
  if (args.siblings != 2) return taking;
#pragma unroll
  for (uint32_t n = 0; n < N8; ++n)
#pragma unroll
    for (uint32_t c = 0; c < 4; ++c)
      if (facts.id[column0 + n * 8 + c % 2] == rows.id[c / 2]) taking &= ~(1u << (4 * n + c));
  return taking;
}

// exp(logit - logsumexp), at most 1: huge scores may round to more here than in the sums. NaN stays NaN.
CPR_DEVICE float share_of(float excess) { return excess > 0.0f ? 1.0f : expf(excess); }

// Scores of the columns [first, ..) become weights of their features, in the columns' own scale; `shrink` is
// what the sums so far are worth then.
template <bool GRADIENT, class R>
CPR_DEVICE void weigh(const AttendArgs& args, const ColumnFacts& facts, uint32_t first, uint32_t end,
                      int row_in_tile, LaneRows& rows, R& ranks, float (&weights)[ATTEND_COLUMNS / 8][4],
                      float (&shrink)[2]) {
  constexpr int N8 = ATTEND_COLUMNS / 8;
  static_assert(N8 == 4, "sixteen pairs a lane, a bit each");
  const int lane = thread_index() & 31;
  float of_column[N8][2];
  const bool plain = scale_scores(facts, rows, weights, of_column);
  const uint32_t taking = pairs_taking(args, facts, rows, first, end);
  if constexpr (R::COUNTS) {
#pragma unroll
    for (int n = 0; n < N8; ++n)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        if (!(taking >> (4 * n + c) & 1u)) continue;
        const uint32_t column = first + static_cast<uint32_t>(n * 8 + lane % 4 * 2 + c % 2);
        if (c < 2)
          ranks.template add<0>(weights[n][c], column);
        else
          ranks.template add<1>(weights[n][c], column);
      }
  }
  shrink[0] = shrink[1] = 1.0f;
  if constexpr (!GRADIENT) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float most = rows.top[half];
#pragma unroll
      for (int n = 0; n < N8; ++n)
#pragma unroll
        for (int c = 2 * half; c < 2 * half + 2; ++c)
          if (taking >> (4 * n + c) & 1u) most = fmaxf(most, weights[n][c]);
      most = row_maximum(most);
      shrink[half] = expf((rows.top[half] - most) * args.scale);
      rows.top[half] = most;
      rows.mass[half] *= shrink[half];
    }
  }
#pragma unroll
  for (int n = 0; n < N8; ++n)
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int column = n * 8 + lane % 4 * 2 + c % 2;
      float weight = 0.0f;
      if (taking >> (4 * n + c) & 1u) {
        if constexpr (GRADIENT) {
          const float logit = weights[n][c] * args.scale;
          const bool positive = (facts.listed[row_in_tile + c / 2 * 8] >> column & 1u) ||
                                (args.siblings == 1 && facts.id[column] == rows.id[c / 2]);
          weight = share_of(logit - facts.all[column]);
          if (positive) weight -= share_of(logit - facts.positive[column]);
          weight *= facts.grad[column];
        } else {
          weight = expf((weights[n][c] - rows.top[c / 2]) * args.scale);
          rows.mass[c / 2] += weight;
        }
        if (plain) weight *= of_column[n][c % 2];
      }
      weights[n][c] = weight;
    }
  if (plain) return;
  for_each_four(weights, [&](float(&four)[4], int n) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int exponent = facts.exponent[n * 8 + lane % 4 * 2 + c % 2];
      if (exponent != ODD) four[c] = scaled(four[c], exponent);
    }
  });
}

}  // namespace cpr
