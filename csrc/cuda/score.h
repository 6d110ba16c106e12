// Tiles of inner products on tensor cores. float32 goes in as two float16 planes: a row is scaled by a power
// of two so that its largest entry is in [1/2, 1), x = high + low / 2048, and a product is high*high +
// (high*low + low*high) / 2048: 22 bits a factor. Integers up to 2048 have no low part, so their products and
// sums are exact.
#pragma once
#include "../cascade_topk.h"
#include "device/device.h"
#include "device/device_limits.h"
#include "split_rows.h"

namespace cpr {

constexpr int TILE_KEYS = 128;
constexpr int DEPTH = 32;  // features a step: 64 bytes of a row
constexpr int STEPS = 3;   // steps in flight
constexpr float LOW_SCALE = 2048.0f;
// One view, as the tensor cores want it: rows 16-byte aligned, dim a multiple of 8.
struct Operand {
  const uint16_t* planes;    // [planes][rows, pitch]
  int64_t pitch;             // elements from row to row
  int64_t plane;             // elements from the high plane to the low
  const int32_t* exponents;  // [rows] or null: row = planes * 2^exponent
  const float* plain;        // the rows in float32, for odd ones; null when there are no exponents
  int64_t plain_stride;
};

struct ScoreView {
  Operand queries, keys;
  int dim, plain_dim;  // a multiple of 8, and the true one
};

struct ScoreArgs {
  ScoreView views[MAX_VIEWS];
  int num_views;
  uint32_t num_queries, num_keys;  // of this sweep
  int64_t first_query;             // rows before them
  float* out;                      // [views][num_queries, pitch], pitch even: pairs are written
  int64_t view_stride, pitch;
  const int64_t* query_ids;  // from the sweep's first query on, or null
  const int64_t* key_ids;
  const uint8_t* exclude;
  int64_t exclude_stride;
};

// Times 2^exponent for any exponent a pair of rows can have, from -252 to 256, rounded once unless the result
// is subnormal. A sum of products is 0 or at least 2^-59, so that 2^254 makes it infinite already.
struct PowerOfTwo {
  float first, second;
  CPR_DEVICE explicit PowerOfTwo(int exponent) {
    if (exponent > 254) exponent = 254;
    const int half = exponent >> 1;
    first = power_of_two(half), second = power_of_two(exponent - half);
  }
  CPR_DEVICE float times(float value) const { return value * first * second; }
};
CPR_DEVICE float scaled(float value, int exponent) { return PowerOfTwo(exponent).times(value); }

// Shapes of a tile of BM queries by TILE_KEYS keys, 8 warps.
template <int BM>
struct TileShape {
  static constexpr int WARPS_M = BM == 16 ? 1 : 2;
  static constexpr int WARPS_N = 8 / WARPS_M;
  static constexpr int M16 = BM / WARPS_M / 16;       // 16-row pieces a warp
  static constexpr int N8 = TILE_KEYS / WARPS_N / 8;  // 8-key pieces a warp
  static_assert(M16 * WARPS_M * 16 == BM && N8 % 2 == 0, "whole pieces, keys in pairs");
};

// What the epilogue needs of a tile's rows, beside the sums.
template <int BM, int KEYS = TILE_KEYS>
struct TileRows {
  int64_t query_id[BM], key_id[KEYS];  // -1 and 0 where there are no ids: a pair that excludes nothing
  int query_exponent[BM], key_exponent[KEYS];
};

template <int BM, int PLANES>
constexpr int SCORE_STAGES_BYTES = STEPS* PLANES*(BM + TILE_KEYS) * DEPTH * 2;
template <int BM, int PLANES>
constexpr int SCORE_SHARED_BYTES = SCORE_STAGES_BYTES<BM, PLANES> + static_cast<int>(sizeof(TileRows<BM>));
static_assert(SCORE_SHARED_BYTES<128, 2> <= 99 * 1024,
              "two planes of the largest tile fit every device from 8.0 on");

// Where 16-byte piece `piece` (0..3) of a row lies within a tile of 64-byte rows: eight rows' pieces hit all
// banks.
CPR_DEVICE int swizzled(int row, int piece) { return row * DEPTH + ((piece ^ (row >> 1 & 3)) << 3); }

// Where a thread's 16-byte pieces of a step come from: rows of a tile 64 apart, in all planes, at one place
// in the row. Rows beyond the end repeat the last one.
template <int BM, int PLANES>
struct Pieces {
  static constexpr int ROWS = BM + TILE_KEYS, EACH = SCORE_THREADS / 4, COUNT = (ROWS + EACH - 1) / EACH;
  const uint16_t* from[COUNT];
  int64_t plane[COUNT];  // from the high plane to the low
  int piece, row;

  CPR_DEVICE Pieces(const ScoreArgs& args, const ScoreView& view, uint32_t query0, uint32_t key0)
      : piece(thread_index() & 3), row(thread_index() >> 2) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      const int at_row = row + i * EACH;
      const bool of_query = at_row < BM;
      const uint32_t wanted =
          of_query ? query0 + static_cast<uint32_t>(at_row) : key0 + static_cast<uint32_t>(at_row - BM);
      const uint32_t last = (of_query ? args.num_queries : args.num_keys) - 1;
      const Operand& operand = of_query ? view.queries : view.keys;
      const int64_t at =
          static_cast<int64_t>(wanted < last ? wanted : last) + (of_query ? args.first_query : 0);
      from[i] = operand.planes + at * operand.pitch + piece * 8;
      plane[i] = operand.plane;
    }
  }

  // Start copying features [step * DEPTH, ...) of the tile's rows.
  CPR_DEVICE void fetch(const ScoreView& view, int step, uint16_t* stage) const {
    const bool real = step * DEPTH + piece * 8 < view.dim;
    const int d = real ? step * DEPTH : 0;
    uint16_t* to = stage + swizzled(row, piece);  // 64 rows further lie the same way
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (ROWS % EACH != 0 && i == COUNT - 1 && row + i * EACH >= ROWS) break;
#pragma unroll
      for (int p = 0; p < PLANES; ++p)
        copy_async(to + (p * ROWS + i * EACH) * DEPTH, from[i] + (p ? plane[i] : 0) + d, real);
    }
  }
};

// The plain float32 product of a pair with an odd row, in order of features.
CPR_DEVICE float plain_product(const float* query, const float* key, int dim) {
  float sum = 0;
  for (int d = 0; d < dim; ++d) sum += query[d] * key[d];
  return sum;
}

template <int BM, int PLANES>
CPR_DEVICE void load_tile_rows(const ScoreArgs& args, const ScoreView& view, uint32_t query0, uint32_t key0,
                               TileRows<BM>& rows) {
  for (int i = thread_index(); i < BM + TILE_KEYS; i += SCORE_THREADS) {
    const bool of_query = i < BM;
    const uint32_t at = of_query ? query0 + static_cast<uint32_t>(i) : key0 + static_cast<uint32_t>(i - BM);
    const bool real = at < (of_query ? args.num_queries : args.num_keys);
    if (of_query) {
      rows.query_id[i] = real && args.query_ids ? args.query_ids[at] : -1;
      rows.query_exponent[i] = PLANES == 2 && real ? view.queries.exponents[args.first_query + at] : 0;
    } else {
      rows.key_id[i - BM] = real && args.key_ids ? args.key_ids[at] : 0;
      rows.key_exponent[i - BM] = PLANES == 2 && real ? view.keys.exponents[at] : 0;
    }
  }
}

// Exponents that a product takes without a check: sums are multiples of 2^-59 and below 2^31, so that neither
// of two scalings by up to 2^24 leaves the normal numbers, and both are exact.
constexpr int USUAL = 24;
CPR_DEVICE bool usual(int exponent) { return exponent >= -USUAL && exponent <= USUAL; }

struct alignas(8) Two {
  float of[2];
};

// Do ids exclude any of a thread's pairs?
template <class S, class Rows>
CPR_DEVICE bool any_never(const Rows& rows, int row0, int column0) {
  bool any = false;
#pragma unroll
  for (int n = 0; n < 2 * S::N8; ++n) {
    const int64_t id = rows.key_id[column0 + n / 2 * 8 + n % 2];
    any |= id < 0;
#pragma unroll
    for (int m = 0; m < 2 * S::M16; ++m) any |= rows.query_id[row0 + 8 * m] == id;
  }
  return any;
}

// What the products of a thread's pairs become where they lie, the tile's first at `to`; rows and columns
// count within the tile. NaN where a pair may never be selected; scaled, or formed anew for odd rows, unless
// the rows were usual ones. A loop, for few pairs need it.
template <class S, int PLANES, class Rows>
CPR_DEVICE void mend_scores(const ScoreArgs& args, const ScoreView& view, const Rows& rows, uint32_t query0,
                            uint32_t key0, int row0, int column0, float* to, bool usual_rows) {
#pragma unroll 1
  for (int n = 0; n < 2 * S::N8; ++n) {
    const int column = column0 + n / 2 * 8 + n % 2;
    const int64_t key = key0 + static_cast<uint32_t>(column), id = rows.key_id[column];
    if (key >= args.num_keys) break;
#pragma unroll 1
    for (int m = 0; m < 2 * S::M16; ++m) {
      const int row = row0 + 8 * m;
      const int64_t query = query0 + static_cast<uint32_t>(row);
      if (query >= args.num_queries) break;
      float* at = to + row * args.pitch + column;
      bool never = id < 0 || rows.query_id[row] == id;
      if (args.exclude) never = never || args.exclude[query * args.exclude_stride + key] != 0;
      if (never) {
        *at = float_of(0x7FC00000u);
      } else if (PLANES == 2 && !usual_rows) {
        const int of_query = rows.query_exponent[row], of_key = rows.key_exponent[column];
        *at = of_query == ODD || of_key == ODD
                  ? plain_product(view.queries.plain + (args.first_query + query) * view.queries.plain_stride,
                                  view.keys.plain + key * view.keys.plain_stride, view.plain_dim)
                  : scaled(*at, of_query + of_key);
      }
    }
  }
}

// A warp's sums to `out` as scores: `to` is where the tile's first score goes. Most rows are of usual size,
// which is tested once a thread and not once a score; what else there is, is mended where it lies.
template <class S, int PLANES, class Rows>
CPR_DEVICE void write_scores(const ScoreArgs& args, const ScoreView& view, const Rows& rows, uint32_t query0,
                             uint32_t key0, int m0, int n0, float* to, float (&high)[S::M16][S::N8][4],
                             float (&cross)[PLANES == 2 ? S::M16 : 1][PLANES == 2 ? S::N8 : 1][4]) {
  const int lane = thread_index() & 31, row0 = m0 + lane / 4, column0 = n0 + lane % 4 * 2;
  bool plain = true;
  if constexpr (PLANES == 2) {
#pragma unroll
    for (int m = 0; m < 2 * S::M16; ++m) plain = plain && usual(rows.query_exponent[row0 + 8 * m]);
#pragma unroll
    for (int n = 0; n < 2 * S::N8; ++n)
      plain = plain && usual(rows.key_exponent[column0 + n / 2 * 8 + n % 2]);
  }
#pragma unroll
  for (int n = 0; n < S::N8; ++n) {
    const int column = column0 + n * 8;
    float of_key[2] = {1.0f, 1.0f};
    if (PLANES == 2 && plain) {
#pragma unroll
      for (int i = 0; i < 2; ++i) of_key[i] = power_of_two(rows.key_exponent[column + i]);
    }
#pragma unroll
    for (int m = 0; m < S::M16; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = row0 + m * 16 + 8 * half;
        if (query0 + static_cast<uint32_t>(row) >= args.num_queries) continue;
        const float of_query = PLANES == 2 && plain ? power_of_two(rows.query_exponent[row]) : 1.0f;
        Two pair;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int c = 2 * half + i;
          const float main = high[m][n][c],
                      rest = PLANES == 2 ? cross[PLANES == 2 ? m : 0][PLANES == 2 ? n : 0][c] : 0.0f;
          pair.of[i] = PLANES == 2 ? (main + rest * (1.0f / LOW_SCALE)) * of_query * of_key[i] : main;
        }
        float* at = to + row * args.pitch + column;
        if (key0 + static_cast<uint32_t>(column) < args.num_keys) *reinterpret_cast<Two*>(at) = pair;
      }
  }
  if (!plain || args.exclude || (args.key_ids && any_never<S>(rows, row0, column0)))
    mend_scores<S, PLANES>(args, view, rows, query0, key0, row0, column0, to, plain);
}

// out[query0.., key0..] of one view. The order of every sum depends on nothing but the features' size.
template <bool BFLOAT, int PLANES, int BM>
CPR_DEVICE void score_tile(const ScoreArgs& args, int view_index, uint32_t query0, uint32_t key0,
                           unsigned char* shared) {
  using S = TileShape<BM>;
  constexpr int ROWS = BM + TILE_KEYS, STAGE = PLANES * ROWS * DEPTH;
  const ScoreView& view = args.views[view_index];
  uint16_t* stages = reinterpret_cast<uint16_t*>(shared);
  TileRows<BM>& rows = *reinterpret_cast<TileRows<BM>*>(shared + SCORE_STAGES_BYTES<BM, PLANES>);
  const int lane = thread_index() & 31, warp = thread_index() >> 5;
  const int m0 = warp % S::WARPS_M * S::M16 * 16, n0 = warp / S::WARPS_M * S::N8 * 8;
  const int steps = (view.dim + DEPTH - 1) / DEPTH;
  float high[S::M16][S::N8][4] = {}, cross[PLANES == 2 ? S::M16 : 1][PLANES == 2 ? S::N8 : 1][4] = {};

  const Pieces<BM, PLANES> pieces(args, view, query0, key0);
  for (int i = 0; i < STEPS - 1; ++i) {
    if (i < steps) pieces.fetch(view, i, stages + i * STAGE);
    copy_commit();
  }
  load_tile_rows<BM, PLANES>(args, view, query0, key0, rows);
  for (int step = 0; step < steps; ++step) {
    copy_wait<STEPS - 2>();
    sync_block();  // the step's features are there, and everyone is done with the stage filled next
    const int next = step + STEPS - 1;
    if (next < steps) pieces.fetch(view, next, stages + next % STEPS * STAGE);
    copy_commit();
    const uint16_t* stage = stages + step % STEPS * STAGE;
#pragma unroll
    for (int k = 0; k < DEPTH / 16; ++k) {
      uint32_t a[PLANES][S::M16][4];
#pragma unroll
      for (int p = 0; p < PLANES; ++p)
#pragma unroll
        for (int m = 0; m < S::M16; ++m)
          load_matrices<false>(
              a[p][m], stage + p * ROWS * DEPTH + swizzled(m0 + m * 16 + (lane & 15), 2 * k + (lane >> 4)));
#pragma unroll
      for (int n = 0; n < S::N8; n += 2) {
        uint32_t b[PLANES][4];
#pragma unroll
        for (int p = 0; p < PLANES; ++p)
          load_matrices<false>(
              b[p], stage + p * ROWS * DEPTH +
                        swizzled(BM + n0 + n * 8 + (lane & 7) + (lane >> 4) * 8, 2 * k + (lane >> 3 & 1)));
#pragma unroll
        for (int m = 0; m < S::M16; ++m)
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            multiply_add<BFLOAT>(high[m][n + h], a[0][m], b[0][2 * h], b[0][2 * h + 1]);
            if constexpr (PLANES == 2) {
              multiply_add<BFLOAT>(cross[m][n + h], a[0][m], b[1][2 * h], b[1][2 * h + 1]);
              multiply_add<BFLOAT>(cross[m][n + h], a[1][m], b[0][2 * h], b[0][2 * h + 1]);
            }
          }
      }
    }
  }
  copy_wait<0>();
  sync_block();  // the rows are there whatever the number of steps
  float* to = args.out + view_index * args.view_stride + query0 * args.pitch + key0;
  write_scores<S, PLANES>(args, view, rows, query0, key0, m0, n0, to, high, cross);
  sync_block();  // the rows have been read, and the stages may be filled again
}

}  // namespace cpr
