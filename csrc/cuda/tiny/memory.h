// How the cluster of a tiny call shares its work, and what a block of it holds in shared memory. Arithmetic
// alone, for the planner.
#pragma once
#include <algorithm>
#include <cstdint>

#include "../device/carver.h"
#include "../device/device_limits.h"

namespace cpr {

constexpr int64_t TINY_QUERIES = 16, TINY_KEYS = 4096;
constexpr int TINY_DIM = 128;         // features of a view at most
constexpr int64_t TINY_RESULT = 256;  // the longest result
// Blocks of the cluster, each of which selects for one query, and warps a block. A warp takes 16 keys of a
// view at a time: of 2,048 keys and two views once.
constexpr int TINY_BLOCKS = 16, TINY_WARPS = 16, TINY_THREADS = TINY_WARPS * 32, WARP_KEYS = 16;
static_assert(TINY_BLOCKS >= TINY_QUERIES, "a block a query");

// Bytes of a query and view: a float32 row in two planes, or a 16-bit row; so that eight of them begin in
// different banks. Then of a warp's keys on their way to registers, and of float32 queries on theirs.
template <int PLANES>
constexpr int TINY_ROW = TINY_DIM * 2 * PLANES + (PLANES == 2 ? 64 : 16);
template <int PLANES>
constexpr int TINY_STAGE = PLANES == 2 ? WARP_KEYS * TINY_DIM * 4 : WARP_KEYS * TINY_ROW<1>;
template <int PLANES>
constexpr int TINY_LANDING = PLANES == 2 ? TINY_THREADS * 2 * 16 : 0;

// What a block knows of the queries, and of the keys that its warps multiply.
struct TinyFacts {
  int64_t query_id[TINY_QUERIES], key_id[TINY_WARPS][WARP_KEYS];  // -1 and 0 where there is none
  float scale[MAX_VIEWS][TINY_QUERIES];  // of queries: 2^exponent, NaN where that is not usual (score.h)
  int32_t exponent[MAX_VIEWS][TINY_QUERIES];
};

// Floats from one plane of a query's scores to the next.
inline int64_t tiny_pitch(int64_t num_keys) { return rounded_up(std::max<int64_t>(num_keys, 1), 32); }

// Scores are behind each other; then whatever selects, where there were the queries and keys before.
inline int64_t tiny_shared_bytes(bool split, int views, int score_planes, int64_t num_keys,
                                 int64_t select_bytes) {
  const int64_t rows = split ? TINY_ROW<2> : TINY_ROW<1>, stage = split ? TINY_STAGE<2> : TINY_STAGE<1>;
  const int64_t features = static_cast<int64_t>(sizeof(TinyFacts)) + views * TINY_QUERIES * rows +
                           (split ? TINY_LANDING<2> : 0) + TINY_WARPS * stage;
  return score_planes * tiny_pitch(num_keys) * 4 + std::max(features, select_bytes);
}

}  // namespace cpr
