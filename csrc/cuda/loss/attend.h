// Attention-like sums on tensor cores, for the loss and its gradients: tiles of scores between rows and
// columns become weights, and the weights sum the columns' features, nothing of size rows x columns ever
// leaving the registers.
//
// Features come as two float16 planes, x = high + low, a row scaled by a power of two (score.h); products are
// high*high + high*low + low*high. Weights are split the same way, scaled by a running power of two a row.
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

// Where piece `piece` of 8 features is in a tile of rows of DEPTHS: eight rows' pieces hit all banks.
template <int DEPTHS>
CPR_DEVICE int wide_swizzled(int row, int piece) {
  return row * DEPTHS + ((piece ^ (row & 7)) << 3);
}

template <int DEPTHS>
constexpr int ATTEND_ROW_TILE = 2 * ATTEND_ROWS* DEPTHS;  // halves, both planes
template <int DEPTHS>
constexpr int ATTEND_COLUMN_TILE = 2 * ATTEND_COLUMNS* DEPTHS;

struct ColumnFacts {
  int64_t id[ATTEND_COLUMNS];
  int exponent[ATTEND_COLUMNS];
  float grad[ATTEND_COLUMNS], all[ATTEND_COLUMNS], positive[ATTEND_COLUMNS];
  uint32_t listed[ATTEND_ROWS];  // bit c: the tile's column c lists this row
};

template <int DEPTHS>
constexpr int ATTEND_SHARED_BYTES = 2 *
                                    (ATTEND_ROW_TILE<DEPTHS> +
                                     2 * ATTEND_COLUMN_TILE<DEPTHS>)+static_cast<int>(sizeof(ColumnFacts));
static_assert(ATTEND_SHARED_BYTES<256> == ATTEND_256_BYTES, "as the layout counts it");

// Start copying `count` rows of both planes, DEPTHS features from feature `feature` on. Rows beyond the end
// repeat the last one.
template <int DEPTHS>
CPR_DEVICE void fetch_rows(const Operand& from, uint32_t first, uint32_t total, int count, int feature,
                           uint16_t* to) {
  constexpr int PIECES = DEPTHS / 8;
  for (int i = thread_index(); i < 2 * count * PIECES; i += ATTEND_THREADS) {
    const int piece = i % PIECES, row = i / PIECES % count, plane = i / PIECES / count;
    const uint32_t at =
        first + static_cast<uint32_t>(row) < total ? first + static_cast<uint32_t>(row) : total - 1;
    copy_async(to + plane * count * DEPTHS + wide_swizzled<DEPTHS>(row, piece),
               from.planes + plane * from.plane + at * from.pitch + feature + piece * 8, true);
  }
}

// One warp's share: 16 rows, the sums of their weights times the columns' features, and what scales them.
template <int DEPTHS>
struct Attention {
  static constexpr int OUT = DEPTHS < OUT_DEPTH ? DEPTHS : OUT_DEPTH;
  static constexpr int N8 = ATTEND_COLUMNS / 8;
  const uint16_t *row_tile, *column_tile;
  int lane, row0;  // the warp's first row in the tile
  int out0;        // the block's first feature in the column tile
  float sums[OUT / 8][4];
  int power[2];  // sums are in units of 2^power, for the lane's two rows

  // scores[n][c] = <row, column> before exponents; c = 0, 1 of row lane / 4, c = 2, 3 of row lane / 4 + 8.
  CPR_DEVICE void scores(float (&to)[N8][4]) const {
    float cross[N8][4] = {};
#pragma unroll
    for (int n = 0; n < N8; ++n)
#pragma unroll
      for (int c = 0; c < 4; ++c) to[n][c] = 0.0f;
    add_scores(to, cross);
#pragma unroll
    for (int n = 0; n < N8; ++n)
#pragma unroll
      for (int c = 0; c < 4; ++c) to[n][c] += cross[n][c];
  }

  // The products of the tiles at hand: high by high to `to`, the two others to `cross`.
  CPR_DEVICE void add_scores(float (&to)[N8][4], float (&cross)[N8][4]) const {
#pragma unroll 2
    for (int k = 0; k < DEPTHS / 16; ++k) {
      uint32_t a[2][4];
#pragma unroll
      for (int p = 0; p < 2; ++p)
        load_matrices<false>(a[p], row_tile + p * ATTEND_ROWS * DEPTHS +
                                       wide_swizzled<DEPTHS>(row0 + (lane & 15), 2 * k + (lane >> 4)));
#pragma unroll
      for (int n = 0; n < N8; n += 2) {
        uint32_t b[2][4];
#pragma unroll
        for (int p = 0; p < 2; ++p)
          load_matrices<false>(
              b[p], column_tile + p * ATTEND_COLUMNS * DEPTHS +
                        wide_swizzled<DEPTHS>(n * 8 + (lane & 7) + (lane >> 4) * 8, 2 * k + (lane >> 3 & 1)));
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          multiply_add<false>(to[n + h], a[0], b[0][2 * h], b[0][2 * h + 1]);
          multiply_add<false>(cross[n + h], a[0], b[1][2 * h], b[1][2 * h + 1]);
          multiply_add<false>(cross[n + h], a[1], b[0][2 * h], b[0][2 * h + 1]);
        }
      }
    }
  }

  // sums = sums * shrink + weights x columns, shrink by row. Weights are in the columns' own scale already.
  CPR_DEVICE void add(const float (&weights)[N8][4], const float (&shrink)[2]) {
    float unit[2], keep[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float most = 0.0f;
#pragma unroll
      for (int n = 0; n < N8; ++n)
        most = fmaxf(most, fmaxf(fabsf(weights[n][2 * half]), fabsf(weights[n][2 * half + 1])));
      most = fmaxf(most, shuffle_xor(most, 1));
      most = fmaxf(most, shuffle_xor(most, 2));
      int needed = static_cast<int>(bits_of(most) >> 23) - 126;  // most < 2^needed
      if (needed < -120) needed = -120;
      if (needed < power[half]) needed = power[half];  // only grows: sums never lose their low bits
      keep[half] = shrink[half] * scaled(1.0f, power[half] - needed);
      power[half] = needed;
      unit[half] = scaled(1.0f, -needed);
    }
#pragma unroll
    for (int n = 0; n < OUT / 8; ++n)
#pragma unroll
      for (int c = 0; c < 4; ++c) sums[n][c] *= keep[c / 2];
#pragma unroll
    for (int t = 0; t < N8 / 2; ++t) {  // 16 columns: two pieces of scores are one left operand
      uint32_t high[4], low[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const float first = weights[2 * t + r / 2][r % 2 * 2] * unit[r % 2],
                    second = weights[2 * t + r / 2][r % 2 * 2 + 1] * unit[r % 2];
        const uint16_t h0 = to_half(first), h1 = to_half(second);
        high[r] = h0 | static_cast<uint32_t>(h1) << 16;
        low[r] = to_half(first - from_half(h0)) | static_cast<uint32_t>(to_half(second - from_half(h1)))
                                                      << 16;
      }
#pragma unroll
      for (int n = 0; n < OUT / 8; n += 2) {
        uint32_t b[2][4];
#pragma unroll
        for (int p = 0; p < 2; ++p)
          load_matrices<true>(b[p],
                              column_tile + p * ATTEND_COLUMNS * DEPTHS +
                                  wide_swizzled<DEPTHS>(16 * t + (lane & 15), out0 / 8 + n + (lane >> 4)));
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          multiply_add<false>(sums[n + h], high, b[0][2 * h], b[0][2 * h + 1]);
          multiply_add<false>(sums[n + h], high, b[1][2 * h], b[1][2 * h + 1]);
          multiply_add<false>(sums[n + h], low, b[0][2 * h], b[0][2 * h + 1]);
        }
      }
    }
  }

  // Write the lane's sums of row half `half` to `to` [dim], from feature `first` on.
  CPR_DEVICE void store(float* to, int half, int first, int dim) const {
#pragma unroll
    for (int n = 0; n < OUT / 8; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int d = first + n * 8 + lane % 4 * 2 + i;
        if (d < dim) to[d] = scaled(sums[n][2 * half + i], power[half]);
      }
  }
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

// Scores of the columns [first, ..) become weights of their features, in the columns' own scale; `shrink` is
// what the sums so far are worth then.
template <bool GRADIENT, class R>
CPR_DEVICE void weigh(const AttendArgs& args, const ColumnFacts& facts, uint32_t first, uint32_t end,
                      int row_in_tile, LaneRows& rows, R& ranks, float (&weights)[ATTEND_COLUMNS / 8][4],
                      float (&shrink)[2]) {
  constexpr int N8 = ATTEND_COLUMNS / 8;
  const int lane = thread_index() & 31;
  uint32_t taking = 0;  // bit 4 n + c
#pragma unroll
  for (int n = 0; n < N8; ++n)
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int column = n * 8 + lane % 4 * 2 + c % 2;
      if (first + static_cast<uint32_t>(column) >= end) continue;
      const int64_t id = facts.id[column], filled = args.empty_rows ? rows.id[c / 2] : id;
      const int of_row = rows.exponent[c / 2], of_column = facts.exponent[column];
      const float score = of_row == ODD || of_column == ODD ? float_of(0x7FC00000u)
                                                            : scaled(weights[n][c], of_row + of_column);
      weights[n][c] = fmaf(score, 0.0f, score);  // NaN where it overflowed: the sums it takes part in are NaN
      if (filled >= 0 && !(args.siblings == 2 && id == rows.id[c / 2])) {
        taking |= 1u << (4 * n + c);
        if (c < 2)
          ranks.template add<0>(weights[n][c], first + static_cast<uint32_t>(column));
        else
          ranks.template add<1>(weights[n][c], first + static_cast<uint32_t>(column));
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
      most = fmaxf(most, shuffle_xor(most, 1));
      most = fmaxf(most, shuffle_xor(most, 2));
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
          weight = expf(logit - facts.all[column]);
          if (positive) weight -= expf(logit - facts.positive[column]);
          weight *= facts.grad[column];
        } else {
          weight = expf((weights[n][c] - rows.top[c / 2]) * args.scale);
          rows.mass[c / 2] += weight;
        }
        if (facts.exponent[column] != ODD) weight = scaled(weight, facts.exponent[column]);
      }
      weights[n][c] = weight;
    }
}

// What a block has summed, to where the next kernel or the caller reads it; features from `first` on.
template <bool GRADIENT, class A>
CPR_DEVICE void write_rows(const AttendArgs& args, const A& attention, const LaneRows& rows, uint32_t row0,
                           uint32_t part, int first) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float whole = rows.mass[half];  // of four lanes, in a fixed order
    whole += shuffle_xor(whole, 1);
    whole += shuffle_xor(whole, 2);
    const uint32_t row = row0 + static_cast<uint32_t>(8 * half);
    if (row >= args.num_rows) continue;
    if constexpr (GRADIENT) {
      attention.store(args.grad + static_cast<int64_t>(row) * args.dim, half, first, args.dim);
    } else {
      const int64_t at = static_cast<int64_t>(part) * args.num_rows + row;
      if (attention.lane % 4 == 0 && first == 0) {
        args.top[at] = rows.top[half];
        args.mass[at] = whole;
      }
      if (args.attended) attention.store(args.attended + at * args.dim, half, first, args.dim);
    }
  }
}

// The query's sums over a part of the keys (rows are queries, columns keys), with or without ranks, or a
// key's gradient over all queries (rows are keys, columns queries). Grid: x over row tiles, y over parts, z
// over features.
template <int DEPTHS, int MODE>
CPR_DEVICE void attend(const AttendArgs& args, unsigned char* shared) {
  using A = Attention<DEPTHS>;
  constexpr bool GRADIENT = MODE == ATTEND_GRADIENT;
  uint16_t* row_tile = reinterpret_cast<uint16_t*>(shared);
  uint16_t* stages = row_tile + ATTEND_ROW_TILE<DEPTHS>;
  ColumnFacts& facts = *reinterpret_cast<ColumnFacts*>(stages + 2 * ATTEND_COLUMN_TILE<DEPTHS>);
  const int lane = thread_index() & 31, warp = thread_index() >> 5, row_in_tile = warp * 16 + lane / 4;
  const uint32_t row0 = block_index() * ATTEND_ROWS, part = block_index_y();
  const uint32_t begin = part * args.part_columns;
  const uint32_t end =
      begin + args.part_columns < args.num_columns ? begin + args.part_columns : args.num_columns;
  const bool summing = GRADIENT || args.attended;
  const int out0 = static_cast<int>(block_index_z()) * A::OUT;
  A attention{row_tile, nullptr, lane, warp * 16, out0, {}, {-120, -120}};
  LaneRows rows(args, row0 + static_cast<uint32_t>(row_in_tile));
  Ranks<MODE> ranks(args.ranks, args.num_rows, row0 + static_cast<uint32_t>(row_in_tile));
  fetch_rows<DEPTHS>(args.rows, row0, args.num_rows, ATTEND_ROWS, 0, row_tile);
  if (begin < end) fetch_rows<DEPTHS>(args.columns, begin, args.num_columns, ATTEND_COLUMNS, 0, stages);
  copy_commit();

  int turn = 0;
  for (uint32_t first = begin; first < end; first += ATTEND_COLUMNS, turn ^= 1) {
    copy_wait<0>();
    sync_block();  // this step's columns are there; the last step's facts and columns have been used
    if (first + ATTEND_COLUMNS < end)
      fetch_rows<DEPTHS>(args.columns, first + ATTEND_COLUMNS, args.num_columns, ATTEND_COLUMNS, 0,
                         stages + (turn ^ 1) * ATTEND_COLUMN_TILE<DEPTHS>);
    copy_commit();
    load_facts<GRADIENT>(args, first, row0, facts);
    sync_block();
    attention.column_tile = stages + turn * ATTEND_COLUMN_TILE<DEPTHS>;
    float weights[A::N8][4], shrink[2];
    attention.scores(weights);
    weigh<GRADIENT>(args, facts, first, end, row_in_tile, rows, ranks, weights, shrink);
    if (summing) attention.add(weights, shrink);
  }
  copy_wait<0>();
  write_rows<GRADIENT>(args, attention, rows, row0 + static_cast<uint32_t>(row_in_tile), part, out0);
  if (out0 == 0) ranks.write(args.ranks, args.num_rows, row0 + static_cast<uint32_t>(row_in_tile), part);
}

}  // namespace cpr
