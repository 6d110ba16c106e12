// Attention-like sums on tensor cores, for the loss and its gradients: tiles of scores between rows and
// columns become weights, and the weights sum the columns' features, nothing of size rows x columns ever
// leaving the registers.
//
// Features come as two float16 planes, x = high + low, a row scaled by a power of two (score.h); products are
// high*high + high*low + low*high. Weights are split the same way, scaled by a running power of two a row.
#pragma once
#include "attend_weights.h"

namespace cpr {

// Where piece `piece` of 8 features is in a tile of rows of DEPTHS: eight rows' pieces hit all banks.
template <int DEPTHS>
CPR_DEVICE int wide_swizzled(int row, int piece) {
  return row * DEPTHS + ((piece ^ (row & 7)) << 3);
}

template <int DEPTHS>
constexpr int ATTEND_ROW_TILE = 2 * ATTEND_ROWS* DEPTHS;  // halves, both planes
template <int DEPTHS>
constexpr int ATTEND_COLUMN_TILE = 2 * ATTEND_COLUMNS* DEPTHS;

template <int DEPTHS>
constexpr int ATTEND_SHARED_BYTES = 2 *
                                    (ATTEND_ROW_TILE<DEPTHS> +
                                     2 * ATTEND_COLUMN_TILE<DEPTHS>)+static_cast<int>(sizeof(ColumnFacts));
static_assert(ATTEND_SHARED_BYTES<256> == ATTEND_256_BYTES, "as the layout counts it");

// Start copying COUNT rows of both planes, DEPTHS features from feature `feature` on. Rows beyond the end
// repeat the last one. A thread has one piece of every few rows.
template <int DEPTHS, int COUNT>
CPR_DEVICE void fetch_rows(const Operand& from, uint32_t first, uint32_t total, int feature, uint16_t* to) {
  constexpr int PIECES = DEPTHS / 8, AT_ONCE = ATTEND_THREADS / PIECES;
  const int piece = thread_index() % PIECES, row0 = thread_index() / PIECES;
  const uint16_t* planes = from.planes + feature + piece * 8;
#pragma unroll 1
  for (int plane = 0; plane < 2; ++plane, planes += from.plane, to += COUNT * DEPTHS)
#pragma unroll 4
    for (int row = row0; row < COUNT; row += AT_ONCE) {
      const uint32_t wanted = first + static_cast<uint32_t>(row), at = wanted < total ? wanted : total - 1;
      copy_async(to + wide_swizzled<DEPTHS>(row, piece), planes + at * from.pitch, true);
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
      most = row_maximum(most);
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
    const PowerOfTwo unit(power[half]);
#pragma unroll
    for (int n = 0; n < OUT / 8; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int d = first + n * 8 + lane % 4 * 2 + i;
        if (d < dim) to[d] = unit.times(sums[n][2 * half + i]);
      }
  }
};

// What a block has summed, to where the next kernel or the caller reads it; features from `first` on.
template <bool GRADIENT, class A>
CPR_DEVICE void write_rows(const AttendArgs& args, const A& attention, const LaneRows& rows, uint32_t row0,
                           uint32_t part, int first) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float whole = row_sum(rows.mass[half]);
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
  fetch_rows<DEPTHS, ATTEND_ROWS>(args.rows, row0, args.num_rows, 0, row_tile);
  if (begin < end) fetch_rows<DEPTHS, ATTEND_COLUMNS>(args.columns, begin, args.num_columns, 0, stages);
  copy_commit();

  int turn = 0;
  for (uint32_t first = begin; first < end; first += ATTEND_COLUMNS, turn ^= 1) {
    copy_wait<0>();
    sync_block();  // this step's columns are there; the last step's facts and columns have been used
    if (first + ATTEND_COLUMNS < end)
      fetch_rows<DEPTHS, ATTEND_COLUMNS>(args.columns, first + ATTEND_COLUMNS, args.num_columns, 0,
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
