// Inner products of a block of queries with a panel of keys, exact in order: one fused multiply-add chain per
// product, in blocks of DEPTH along D, whatever the batch split, the tile or the number of threads.
#pragma once
#include "../../types.h"
#include "../simd/int16.h"

namespace cpr {
namespace CPR_ISA_NAMESPACE {

constexpr int TILE = 16;    // keys a tile
constexpr int DEPTH = 128;  // features summed in one chain

// Element `column` of a row in the call's dtype.
inline float element(const void* row, DType dtype, int64_t column) {
  if (dtype == DType::float32) return static_cast<const float*>(row)[column];
  const uint16_t bits = static_cast<const uint16_t*>(row)[column];
  return dtype == DType::bfloat16 ? from_bfloat16(bits) : from_float16(bits);
}

inline const char* row_at(const void* base, DType dtype, int64_t stride, int64_t row) {
  return static_cast<const char*>(base) + row * stride * (dtype == DType::float32 ? 4 : 2);
}

// One row widened to float32: dst [dim].
inline void widen_row(const void* row, DType dtype, int64_t dim, float* dst) {
  int64_t d = 0;
  if (dtype == DType::float32) {
    std::memcpy(dst, row, static_cast<size_t>(dim) * sizeof(float));
    return;
  }
  const uint16_t* half = static_cast<const uint16_t*>(row);
  if (dtype == DType::bfloat16) {
    for (; d + W <= dim; d += W) store(dst + d, widen_bfloat16(half + d));
  } else {
    for (; d + W <= dim; d += W) store(dst + d, widen_float16(half + d));
  }
  for (; d < dim; ++d) dst[d] = element(row, dtype, d);
}

// Queries [first, first + n) of a view as columns: packed [dim, width], lanes beyond n zero.
inline void pack_queries(const View& view, DType dtype, int64_t first, int64_t n, int width, float* packed) {
  for (int lane = 0; lane < width; ++lane) {
    if (lane >= n) {
      for (int64_t d = 0; d < view.dim; ++d) packed[d * width + lane] = 0.0f;
      continue;
    }
    const char* row = row_at(view.queries, dtype, view.query_stride, first + lane);
    for (int64_t d = 0; d < view.dim; ++d) packed[d * width + lane] = element(row, dtype, d);
  }
}

// Memory to prefetch while something else is worked on: `lines` cache lines every four steps, so that
// requests never queue.
struct Ahead {
  const char* place;
  int lines;

  void prefetch() {  // once every four steps
    for (int line = 0; line < lines; ++line) {
      __builtin_prefetch(place, 0, 3);
      place += 64;
    }
  }
  void pass(int64_t moments) { place += moments * lines * 64; }  // what others have prefetched meanwhile
};

// MR rows that are walked side by side, in groups of four: a pointer a group and two strides fit the
// registers, a pointer a row does not.
template <int MR>
struct RowGroups {
  const char* group[(MR + 3) / 4];
  int64_t one_row, three_rows;  // bytes

  RowGroups(const void* first, int64_t row_bytes) : one_row(row_bytes), three_rows(3 * row_bytes) {
    for (int g = 0; g < (MR + 3) / 4; ++g) group[g] = static_cast<const char*>(first) + g * 4 * row_bytes;
  }
  inline __attribute__((always_inline)) const void* at(int i, int64_t byte) const {
    const int64_t row = i % 4 == 0 ? 0 : i % 4 == 1 ? one_row : i % 4 == 2 ? 2 * one_row : three_rows;
    return group[i / 4] + row + byte;
  }
  inline __attribute__((always_inline)) void advance(int64_t bytes) {
    for (int g = 0; g < (MR + 3) / 4; ++g) group[g] += bytes;
    if (MR > 8)
      __asm__("" : "+r"(one_row), "+r"(three_rows));  // or the compiler makes a pointer a row of them
  }
};

// out[i, j] = sum over k of a[i * a_row + k * a_step] * b[k * b_row + j], for MR rows and NR vectors of
// columns; each sum is one chain in order of k. Sets `out`, or adds to it.
template <int MR, int NR>
inline void multiply(const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t b_row,
                     int64_t depth, bool add_to, float* out, int64_t out_row, Ahead ahead = {nullptr, 0}) {
  F sums[MR][NR];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < NR; ++j) sums[i][j] = zero();
  constexpr int64_t SIZE = sizeof(float);
  RowGroups<MR> rows(a, a_row * SIZE);
  const auto step = [&](int64_t ahead_by) __attribute__((always_inline)) {
    F column[NR];
#pragma GCC unroll 4
    for (int j = 0; j < NR; ++j) column[j] = load(b + ahead_by * b_row + j * W);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const F value = set1(*static_cast<const float*>(rows.at(i, ahead_by * a_step * SIZE)));
#pragma GCC unroll 4
      for (int j = 0; j < NR; ++j) sums[i][j] = fma(value, column[j], sums[i][j]);
    }
  };
  const auto advance = [&](int64_t steps) __attribute__((always_inline)) {
    rows.advance(steps * a_step * SIZE);
    b += steps * b_row;
  };
  int64_t k = 0;
  for (; k + 4 <= depth; k += 4) {
    ahead.prefetch();
    step(0);
    step(1);
    step(2);
    step(3);
    advance(4);
  }
  for (; k < depth; ++k) {
    step(0);
    advance(1);
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < NR; ++j) {
      float* place = out + i * out_row + j * W;
      store(place, add_to ? add(load(place), sums[i][j]) : sums[i][j]);
    }
}

template <int NR>
constexpr int rows_at_once() {
  return NR == 1 ? (W == 16 ? 16 : 8) : (W == 16 ? 8 : 4);
}

// A tile of 16 keys against one block of packed queries [dim, NR * W]: out [16, NR * W].
template <int NR>
inline void multiply_tile(const float* keys, int64_t key_stride, const float* packed, int64_t dim, float* out,
                          Ahead ahead = {nullptr, 0}) {
  constexpr int MR = rows_at_once<NR>(), width = NR * W;
  if (dim == 0) std::memset(out, 0, sizeof(float) * TILE * width);
  for (int64_t d = 0; d < dim; d += DEPTH) {
    const int64_t depth = dim - d < DEPTH ? dim - d : DEPTH;
    for (int i = 0; i < TILE; i += MR) {
      multiply<MR, NR>(keys + i * key_stride + d, key_stride, 1, packed + d * width, width, depth, d > 0,
                       out + i * width, width, ahead);
      ahead.pass(depth / 4);
    }
  }
}

// Which keys a panel holds: consecutive ones, or a sample named by `which`.
struct Panel {
  const int32_t* which;  // [count] or null: keys first, first + 1, ...
  int64_t first;
  int64_t count;
  int64_t key(int64_t i) const { return which ? which[i] : first + i; }
};

// How to fetch the tile at p in `moments` of multiplying the one before: the hardware does not see 16 rows
// coming. Neighbouring rows are prefetched little by little, others at once. Returns the bytes left to
// prefetch.
inline int64_t next_tile(const View& view, DType dtype, const Panel& panel, int64_t p, int64_t moments,
                         Ahead* ahead) {
  if (p >= panel.count) return 0;
  const int64_t size = dtype == DType::float32 ? 4 : 2, bytes = view.dim * size;
  const int64_t rows = panel.count - p < TILE ? panel.count - p : TILE;
  if (view.key_stride == view.dim && panel.key(p + rows - 1) - panel.key(p) == rows - 1) {
    const int64_t lines = (TILE * bytes / 64 + moments - 1) / (moments > 0 ? moments : 1);
    *ahead = {row_at(view.keys, dtype, view.key_stride, panel.key(p)), static_cast<int>(lines)};
    return rows * bytes;
  }
  for (int64_t i = p; i < p + rows; ++i) {
    const char* row = row_at(view.keys, dtype, view.key_stride, panel.key(i));
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at, 0, 3);
  }
  return 0;
}

// Products of a tile of keys with blocks of queries, in float32: the exact scores.
template <int NR>
struct Products {
  using Score = float;
  const float* packed;  // [blocks, dim, NR * W]
  int64_t dim;
  const float* keys = nullptr;
  int64_t stride = 0;

  int64_t moments() const { return (TILE / rows_at_once<NR>()) * (dim / 4); }  // of a block, to prefetch in
  void begin(const float* tile, int64_t tile_stride) {
    keys = tile;
    stride = tile_stride;
  }
  void multiply(int block, float* out, Ahead ahead) const {
    multiply_tile<NR>(keys, stride, packed + block * dim * NR * W, dim, out, ahead);
  }
};

// A tile's scores [TILE, width], key by key, become rows of queries.
inline void turn_tile(const float* tile, int width, float* out, int64_t out_stride) {
  for (int k = 0; k < TILE; k += W)
    for (int q = 0; q < width; q += W)
      transpose(tile + k * width + q, width, out + q * out_stride + k, out_stride);
}
inline void turn_tile(const int16_t* tile, int width, int16_t* out, int64_t out_stride) {
  static_assert(TILE == SHORTS, "a tile is a vector of codes");
  for (int q = 0; q < width; q += TURNED) turn_codes(tile + q, width, out + q * out_stride, out_stride);
}

// Scores of one view, in float32 or in codes: out[q * out_stride + p] for all blocks of packed queries and
// all keys of the panel. Keys are visited once. `out` rows must have room for the panel's count rounded up to
// TILE.
template <int NR, class ProductsOfTile>
inline void score_panel(const View& view, DType dtype, const Panel& panel, ProductsOfTile products,
                        int blocks, float* wide, typename ProductsOfTile::Score* out, int64_t out_stride) {
  constexpr int width = NR * W;
  alignas(64) typename ProductsOfTile::Score tile[TILE * width];
  const int64_t moments = products.moments();
  for (int64_t p = 0; p < panel.count; p += TILE) {
    const int64_t rows = panel.count - p < TILE ? panel.count - p : TILE;
    Ahead ahead = {nullptr, 0};
    const int64_t next_bytes = next_tile(view, dtype, panel, p + TILE, blocks * moments, &ahead);
    const char* const ahead_end = ahead.place + next_bytes;
    if (dtype == DType::float32 && rows == TILE && panel.key(p + TILE - 1) - panel.key(p) == TILE - 1) {
      products.begin(reinterpret_cast<const float*>(row_at(view.keys, dtype, view.key_stride, panel.key(p))),
                     view.key_stride);
    } else {  // a gathered, converted or short tile: 16 rows made contiguous
      for (int64_t i = 0; i < rows; ++i)
        widen_row(row_at(view.keys, dtype, view.key_stride, panel.key(p + i)), dtype, view.dim,
                  wide + i * view.dim);
      std::memset(wide + rows * view.dim, 0, sizeof(float) * static_cast<size_t>((TILE - rows) * view.dim));
      products.begin(wide, view.dim);
    }
    for (int block = 0; block < blocks; ++block) {
      if (ahead.place >= ahead_end) ahead.lines = 0;
      products.multiply(block, tile, ahead);
      ahead.pass(moments);
      turn_tile(tile, width, out + block * width * out_stride + p, out_stride);
    }
  }
}

template <int NR>
inline void score_panel(const View& view, DType dtype, const Panel& panel, const float* packed, int blocks,
                        float* wide, float* out, int64_t out_stride) {
  score_panel<NR>(view, dtype, panel, Products<NR>{packed, view.dim}, blocks, wide, out, out_stride);
}

}  // namespace CPR_ISA_NAMESPACE
}  // namespace cpr
