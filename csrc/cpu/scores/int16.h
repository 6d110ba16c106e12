// Int16 scores: rows as whole numbers of 16 bits, each row with a scale of its own, multiplied two at a time
// and summed without rounding. Half the work of float32, and off by no more than `error` times the longest
// key; cascade/rescore.h scores again exactly whatever that leaves undecided.
#pragma once
#include "../../cascade_topk.h"
#include "../arena.h"
#include "float32.h"

namespace cpr {
namespace CPR_ISA_NAMESPACE {

// A key is scaled to this length and a query to at most that, so that by Cauchy and Schwarz no sum, whole or
// partial, reaches 2^31: (32000 + 32) (65000 + 32) < 2^31, where rounding adds at most sqrt(MAX_INT16_DIM) /
// 2 to a length.
constexpr float KEY_LENGTH = 32000, QUERY_LENGTH = 65000;
constexpr float LARGEST = 32700;  // of a query's numbers; a key's are no larger than its length
constexpr float MAYBE_LONGER =
    1.01f;  // than those of the sample keys may be without a look at their own length
constexpr float LEAST_SQUARE = 1e-36f;  // added to squared lengths: rows of zeros have a scale too
constexpr float MOST_LENGTHS = 1e37f;   // product of lengths from which float32 scores may be infinite
constexpr float LEAST_ERROR = 1e-37f;  // where everything is next to nothing, and sums lose bits to denormals
constexpr float ROUNDING = 5.9604645e-8f;  // 2^-24: of one operation in float32, relative

inline int64_t pairs_of(int64_t dim) { return round_up(dim, 2 * W) / 2; }

// Features of a row, over all views: as float32, and as pairs.
struct Dims {
  int64_t widest = 1, total = 0, pairs = 0;
  explicit Dims(const CascadeArgs& args) {
    for (int v = 0; v < args.num_views; ++v) {
      const int64_t dim = args.views[v].dim;
      widest = dim > widest ? dim : widest;
      total += dim;
      pairs += pairs_of(dim);
    }
  }
};

// Squared lengths of 4 rows.
inline void squared_lengths(const float* rows, int64_t stride, int64_t dim, float* out) {
  F squares[4] = {zero(), zero(), zero(), zero()};
  int64_t d = 0;
  for (; d + W <= dim; d += W)
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const F x = load(rows + i * stride + d);
      squares[i] = fma(x, x, squares[i]);
    }
  sums(squares, out);
  for (; d < dim; ++d)
    for (int i = 0; i < 4; ++i) out[i] += rows[i * stride + d] * rows[i * stride + d];
}

// step(at, low, high): the row times `scale`, two vectors at a time, zeros after its end.
template <class Step>
inline __attribute__((always_inline)) void for_scaled(const float* row, int64_t dim, float scale, Step step) {
  const int64_t whole = dim / (2 * W);
#pragma GCC unroll 4
  for (int64_t i = 0; i < whole; ++i, row += 2 * W)
    step(i * W, mul(load(row), set1(scale)), mul(load(row + W), set1(scale)));
  if (whole * 2 * W == dim) return;
  float tail[2 * W] = {};
  std::memcpy(tail, row, sizeof(float) * static_cast<size_t>(dim - whole * 2 * W));
  step(whole * W, mul(load(tail), set1(scale)), mul(load(tail + W), set1(scale)));
}

inline void row_to_pairs(const float* row, int64_t dim, float scale, int32_t* pairs) {
  for_scaled(
      row, dim, scale, [&](int64_t at, F low, F high) __attribute__((always_inline)) {
        store(pairs + at, to_pairs(low, high));
      });
}

// The keys of a tile as pairs [TILE, pairs], by one scale. False: one is too long for that, or holds NaN.
inline bool tile_to_pairs(const float* keys, int64_t stride, int64_t dim, float scale, int32_t* pairs) {
  float squared[TILE];
  for (int i = 0; i < TILE; i += 4) {
    F squares[4];
#pragma GCC unroll 4
    for (int row = 0; row < 4; ++row) {
      F of_low = zero(), of_high = zero();
      for_scaled(
          keys + (i + row) * stride, dim,
          scale, [&](int64_t at, F low, F high) __attribute__((always_inline)) {
            store(pairs + (i + row) * pairs_of(dim) + at, to_pairs(low, high));
            of_low = fma(low, low, of_low);
            of_high = fma(high, high, of_high);
          });
      squares[row] = add(of_low, of_high);
    }
    sums(squares, squared + i);
  }
  bool fit = true;
  for (int i = 0; i < TILE; i += W) fit = fit && ge(set1(KEY_LENGTH * KEY_LENGTH), load(squared + i)) == ALL;
  return fit;
}

// Lengths of a tile's keys: out [TILE]. *longest [W] keeps the longest so far; NaN is passed over.
inline void tile_lengths(const float* keys, int64_t stride, int64_t dim, float* out, float* longest) {
  for (int i = 0; i < TILE; i += 4) squared_lengths(keys + i * stride, stride, dim, out + i);
  F most = load(longest);
  for (int i = 0; i < TILE; i += W) {
    const F length = root(add(load(out + i), set1(LEAST_SQUARE)));
    most = select(gt(length, most), length, most);
    store(out + i, length);
  }
  store(longest, most);
}

// What a query's int16 scores are made of.
struct Int16Query {
  float factor;  // turns a sum, divided by the key's scale, into a score
  float length;
  float error;  // how far a score may be off, for a key of length 1
};

// A query's row [dim], widened, as pairs.
inline Int16Query query_to_pairs(const float* row, int64_t dim, int32_t* pairs) {
  F largest = zero(), sizes = zero(), squares = zero();
  for_scaled(
      row, dim, 1, [&](int64_t, F low, F high) __attribute__((always_inline)) {
        const F first = max(low, sub(zero(), low)), second = max(high, sub(zero(), high));
        largest = max(largest, max(first, second));
        sizes = add(sizes, add(first, second));
        squares = fma(low, low, fma(high, high, squares));
      });
  const float length = __builtin_sqrtf(sum(squares) + LEAST_SQUARE);
  const float by_length = QUERY_LENGTH / length, by_largest = LARGEST / max_of(largest);
  const float scale = by_length < by_largest ? by_length : by_largest;
  row_to_pairs(row, dim, scale, pairs);
  F residual = zero();
  for_scaled(
      row, dim, scale, [&](int64_t, F low, F high) __attribute__((always_inline)) {
        const F first = sub(low, round_even(low)), second = sub(high, round_even(high));
        residual = fma(first, first, fma(second, second, residual));
      });
  // key: each number off by at most 0.5, and what rounds in between; query: as measured; float32: what the
  // exact sum's order of additions and the int16 score's few products may round away
  const float of_key = sum(sizes) * 0.502f / KEY_LENGTH;
  const float of_query = 1.002f * (__builtin_sqrtf(sum(residual)) + 0.01f) / scale;
  const float chain = static_cast<float>(dim < DEPTH ? dim : DEPTH) + static_cast<float>(dim / DEPTH) + 8;
  return {1 / scale, length, 1.02f * (of_key + of_query + 2 * chain * ROUNDING * length)};
}

// put(i, j, sum): sums over pairs k of a[i * a_row + k] and b[k * b_row + j * W], for MR rows and NR vectors
// of columns.
template <int MR, int NR, class Put>
CPR_PAIRS_TARGET inline void multiply_pairs(const int32_t* a, int64_t a_row, const int32_t* b, int64_t pairs,
                                            Put put, Ahead ahead) {
  constexpr int width = NR * W;
  I sums[MR][NR];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < NR; ++j) sums[i][j] = set1(0);
  constexpr int64_t SIZE = sizeof(int32_t);
  RowGroups<MR> rows(a, a_row * SIZE);
  for (int64_t k = 0; k < pairs; k += 4) {  // a multiple of W, so of 4
    ahead.prefetch();
#pragma GCC unroll 4
    for (int step = 0; step < 4; ++step) {
      I column[NR];
#pragma GCC unroll 4
      for (int j = 0; j < NR; ++j) column[j] = load(b + step * width + j * W);
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        const I pair = set1(*static_cast<const int32_t*>(rows.at(i, step * SIZE)));
#pragma GCC unroll 4
        for (int j = 0; j < NR; ++j) sums[i][j] = dot_pairs(sums[i][j], pair, column[j]);
      }
    }
    rows.advance(4 * SIZE);
    b += 4 * width;
  }
  __asm__("" ::: "memory");  // or the compiler keeps what `put` reads in registers that the sums need
#pragma GCC unroll 4
  for (int j = 0; j < NR; ++j)
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) put(i, j, sums[i][j]);
}

// Products of a tile of keys with blocks of queries as pairs, in float32. Keys that hold NaN score NaN.
template <int NR>
struct Int16Products {
  using Score = float;
  const int32_t* packed;      // [blocks, pairs, NR * W]
  const float* query_factor;  // [blocks, NR * W]
  int64_t dim;
  int32_t* tile;    // [TILE, pairs]
  float* longest;   // [W] of the keys seen
  float reference;  // the length that keys are scaled by where none is longer; 0: each by its own
  float factor[TILE] = {};

  int64_t moments() const { return (TILE / rows_at_once<NR>()) * (pairs_of(dim) / 4); }
  void begin(const float* keys, int64_t stride) {
    if (reference > 0 && tile_to_pairs(keys, stride, dim, KEY_LENGTH / reference, tile)) {
      for (int i = 0; i < TILE; i += W) store(factor + i, set1(reference / KEY_LENGTH));
      return;
    }
    float scale[TILE];
    tile_lengths(keys, stride, dim, factor, longest);
    for (int i = 0; i < TILE; i += W) {
      const F length = load(factor + i);
      store(scale + i, div(set1(KEY_LENGTH), length));
      store(factor + i, mul(length, set1(1 / KEY_LENGTH)));
    }
    for (int i = 0; i < TILE; ++i) row_to_pairs(keys + i * stride, dim, scale[i], tile + i * pairs_of(dim));
  }
  void multiply(int block, float* out, Ahead ahead) const {
    constexpr int width = NR * W;
    const float* const of_query = query_factor + block * width;
    multiply_each(
        block, ahead, [&](int key, int query, I sum) __attribute__((always_inline)) {
          const F factors = mul(load(of_query + query), set1(factor[key]));
          store(out + key * width + query, mul(to_float(sum), factors));
        });
  }
  // put(key, query, sum) for the vectors of queries from `query` on.
  template <class Put>
  inline __attribute__((always_inline)) void multiply_each(int block, Ahead ahead, Put put) const {
    constexpr int MR = rows_at_once<NR>();
    const int64_t pairs = pairs_of(dim);
    for (int i = 0; i < TILE; i += MR) {
      multiply_pairs<MR, NR>(
          tile + i * pairs, pairs, packed + block * pairs * NR * W, pairs,
          [&](int row, int column, I sum) __attribute__((always_inline)) { put(i + row, column * W, sum); },
          ahead);
      ahead.pass(pairs / 4);
    }
  }
};

// As Int16Products, in codes: each query has a quantizer of its own, given by its factor and offset.
template <int NR>
struct CodeProducts {
  using Score = int16_t;
  Int16Products<NR> products;
  const float* offset;  // [blocks, NR * W]
  int16_t* whole;       // [keys of the panel] of the tiles to come: set to 0 for keys that hold NaN

  int64_t moments() const { return products.moments(); }
  void begin(const float* keys, int64_t stride) {
    products.begin(keys, stride);
    for (int i = 0; i < TILE; ++i) whole[i] = products.factor[i] < __builtin_inff() ? whole[i] : 0;
    whole += TILE;
  }
  void multiply(int block, int16_t* out, Ahead ahead) const {
    constexpr int width = NR * W;
    const float *const of_query = products.query_factor + block * width, *const start =
                                                                             offset + block * width;
    products.multiply_each(
        block, ahead, [&](int key, int query, I sum) __attribute__((always_inline)) {
          const F factors = mul(load(of_query + query), set1(products.factor[key]));
          store_rounded(out + key * width + query, fma(to_float(sum), factors, load(start + query)));
        });
  }
};

}  // namespace CPR_ISA_NAMESPACE
}  // namespace cpr
