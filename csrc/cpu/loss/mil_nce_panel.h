// What a step of the loss's sweep reads: a panel of keys in float32, its scores against a block of queries,
// and which of the queries have a key's id. Compiled once per instruction set.
#pragma once
#include <cmath>

#include "../../mil_nce.h"
#include "../arena.h"
#include "../ids.h"
#include "../scores/float32.h"

namespace cpr {
namespace CPR_ISA_NAMESPACE {

constexpr int NR = 2;
constexpr int WIDTH = NR * W;        // queries a block
constexpr int64_t LOSS_PANEL = 128;  // keys a step

// One thread's panel: keys in float32 and their scores against a block.
struct PanelMemory {
  float* wide;    // [LOSS_PANEL, dim]
  float* scores;  // [LOSS_PANEL, WIDTH], then the exponentials
  int32_t hash[LOSS_PANEL];
  bool filled[LOSS_PANEL];

  static int64_t bytes(int64_t dim) { return round_up(LOSS_PANEL * dim * 4 + LOSS_PANEL * WIDTH * 4, 64); }
};

struct PanelKeys {
  const float* rows;
  int64_t stride;
  int64_t first, count;
};

inline PanelKeys load_keys(const LossArgs& args, int64_t first, int64_t count, PanelMemory& m) {
  if (args.key_ids)
    for (int64_t j = 0; j < count; ++j) {
      m.hash[j] = hash_of(args.key_ids[first + j]);
      m.filled[j] = args.key_ids[first + j] >= 0;
    }
  const char* rows = row_at(args.keys, args.dtype, args.key_stride, first);
  if (args.dtype == DType::float32 && count % TILE == 0)
    return {reinterpret_cast<const float*>(rows), args.key_stride, first, count};
  for (int64_t j = 0; j < count; ++j)
    widen_row(row_at(args.keys, args.dtype, args.key_stride, first + j), args.dtype, args.dim,
              m.wide + j * args.dim);
  const int64_t padding = round_up(count, TILE) - count;
  std::memset(m.wide + count * args.dim, 0, sizeof(float) * static_cast<size_t>(padding * args.dim));
  return {m.wide, args.dim, first, count};
}

inline void score_keys(const PanelKeys& keys, const float* packed, int64_t dim, float* scores) {
  for (int64_t j = 0; j < keys.count; j += TILE)
    multiply_tile<NR>(keys.rows + j * keys.stride, keys.stride, packed, dim, scores + j * WIDTH);
}

// Lanes of a block whose query has key j's id: exact, after a comparison of 32 hashed bits.
struct SiblingFinder {
  const int64_t* query_ids;  // of the block, or null
  int64_t lanes;
  int32_t hash[WIDTH];

  SiblingFinder(const LossArgs& args, int64_t first)
      : query_ids(args.query_ids ? args.query_ids + first : nullptr) {
    lanes = args.num_queries - first < WIDTH ? args.num_queries - first : WIDTH;
    for (int64_t i = 0; query_ids && i < WIDTH; ++i) hash[i] = i < lanes ? hash_of(query_ids[i]) : 0;
  }
  uint64_t find(int64_t key_id, int32_t key_hash) const {
    uint64_t found = 0;
    for (int j = 0; j < NR; ++j) {
      Mask same = eq(load(hash + j * W), set1(key_hash));
      for (; same; same = static_cast<Mask>(same & (same - 1))) {
        const int lane = j * W + __builtin_ctz(same);
        if (lane < lanes && query_ids[lane] == key_id) found |= uint64_t{1} << lane;
      }
    }
    return found;
  }
};

// Whether all scores [count, WIDTH] are finite: 0 times any other number is NaN.
inline bool all_finite(const float* scores, int64_t count) {
  F sums[2 * NR];
  for (F& sum : sums) sum = zero();
  for (int64_t j = 0; j + 1 < count; j += 2)
#pragma GCC unroll 4
    for (int i = 0; i < 2 * NR; ++i) sums[i] = fma(load(scores + j * WIDTH + i * W), zero(), sums[i]);
  for (int i = 0; i < NR && count % 2 == 1; ++i)
    sums[i] = fma(load(scores + (count - 1) * WIDTH + i * W), zero(), sums[i]);
  F sum = sums[0];
  for (int i = 1; i < 2 * NR; ++i) sum = add(sum, sums[i]);
  return unordered(sum, sum) == 0;
}

// Zeros in place of numbers that are not finite.
inline void keep_finite(const float* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = std::isfinite(from[i]) ? from[i] : 0.0f;
}

}  // namespace CPR_ISA_NAMESPACE
}  // namespace cpr
