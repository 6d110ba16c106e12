// How a cascade call is cut up on a CUDA device: which path, how many queries a sweep, and where everything
// is in the workspace. Arithmetic alone, so that it can be planned for a device that is not here. Three
// paths:
//   tiny  B <= 16, N <= 4,096, D <= 128, results of up to 256, 9.0 and newer: one cluster of 16 blocks
//         multiplies, each its keys, and selects, each for a query, with a cluster barrier between. One
//         launch, where three would wait about 2 us each for the last. Sixteen multiprocessors at 64 bytes a
//         clock read 4 MB of keys in 2.3 us, less than the launches saved; at N = 16,384 they would take 9
//         us, where the whole device takes 1.
//   ring  the scores of 128 queries or more, or of all there are, fit five eighths of the L2 (the rest is for
//         keys): sweeps of that many, all of one size.
//   huge  they do not: sweeps of up to 128 queries through device memory. A sweep reads 4 D bytes a key and
//         view, 4 D / 128 = 4 bytes a score at D = 128, as many as writing the score: fewer queries a sweep
//         would be bound by keys.
// All rules are computed, none is measured yet; bench/gpu_tune.py times the others.
#pragma once
#include <algorithm>

#include "../../cascade_topk.h"
#include "../device/carver.h"
#include "../device/device_limits.h"
#include "../device/tuning.h"
#include "../select/layout.h"
#include "../tiny/memory.h"

namespace cpr {

constexpr int64_t SWEEP_QUERIES = 128, SWEEP_UNIT = 64;
constexpr int64_t HUGE_BYTES = int64_t{2} << 30;  // of scores and lists, unless one query needs more
// Scores on 9.0: a block holds WGMMA_KEYS keys of one view, at most WGMMA_KEY_BLOCKS times 64 features of a
// plane, and queries come 64 at a time. Parts share the queries until there are WGMMA_BLOCKS blocks, one for
// nearly every multiprocessor; where not even half of those come about, smaller tiles fill the device better.
constexpr int WGMMA_KEYS = 256, WGMMA_KEY_BLOCKS = 4;
constexpr int64_t WGMMA_QUERIES = 64, WGMMA_BLOCKS = 128;
// A block reads as many bytes of 256 float32 keys as of their planes, so that one that splits them costs
// instructions only, 12 K beside 6 K a tile of 64 queries, and saves a kernel that reads and writes all keys.
constexpr int64_t KEY_SPLITS = 2;

// Rows of features as the score kernels read them.
struct Planes {
  bool prepared;       // in the workspace; else rows are used where they lie
  bool packed;         // prepared in blocks of 64 rows and features
  uint16_t* planes;    // two of float32 rows, one of 16-bit rows
  int32_t* exponents;  // [rows], of float32 rows
  int64_t padded;      // elements a row of a plane
};

struct CascadeLayout {
  bool tiny, in_cache;
  bool wgmma;     // scores by score_wgmma.h
  bool splits;    // whose blocks split float32 keys themselves
  int64_t chunk;  // queries a sweep
  SelectLayout select;
  Planes queries[MAX_VIEWS], keys[MAX_VIEWS];
  int64_t pitch;  // of a row of scores
  int tile;       // queries of a score tile
  float* scores;  // [select.planes][chunk, pitch]
  int64_t bytes;  // of workspace

  ScoreRows score_rows() const { return {scores, chunk * pitch, pitch}; }
  int64_t sweeps(int64_t num_queries) const { return (num_queries + chunk - 1) / chunk; }
};

// Floats between the score rows of two queries.
inline int64_t score_pitch(int64_t num_keys) { return std::max<int64_t>(rounded_up(num_keys, 4), 4); }

inline bool on_sixteen_bytes(const void* rows, int64_t stride, int64_t dim) {
  return reinterpret_cast<uintptr_t>(rows) % 16 == 0 && stride % 8 == 0 && dim % 8 == 0;
}

// One operand of a view: used where it lies, or prepared in the workspace.
inline Planes plan_planes(DType dtype, const void* rows, int64_t stride, int64_t count, int64_t dim,
                          Carver& carver) {
  const bool split = dtype == DType::float32;
  if (!split && on_sixteen_bytes(rows, stride, dim)) return {};
  Planes made{true, false, nullptr, nullptr, rounded_up(dim, 8)};
  made.planes = carver.take<uint16_t>((split ? 2 : 1) * count * made.padded);
  if (split) made.exponents = carver.take<int32_t>(count);
  return made;
}

// The queries of a view where scores are formed by wgmma.
inline Planes plan_packed(DType dtype, int64_t count, int64_t dim, Carver& carver) {
  const bool split = dtype == DType::float32;
  Planes made{true, true, nullptr, nullptr, rounded_up(dim, 64)};
  made.planes = carver.take<uint16_t>((split ? 2 : 1) * rounded_up(count, WGMMA_QUERIES) * made.padded);
  if (split) made.exponents = carver.take<int32_t>(count);
  return made;
}

// Blocks that share the queries of a sweep, each with the same keys.
inline uint32_t wgmma_parts(int64_t num_queries, int64_t num_keys, int views) {
  const int64_t tiles = (num_queries + WGMMA_QUERIES - 1) / WGMMA_QUERIES;
  const int64_t blocks = (num_keys + WGMMA_KEYS - 1) / WGMMA_KEYS * views;
  const int64_t wanted = tuning().wgmma_parts > 0 ? tuning().wgmma_parts : WGMMA_BLOCKS / blocks;
  return static_cast<uint32_t>(std::max<int64_t>(1, std::min(tiles, wanted)));
}

// Null where scores are formed by wgmma, else why not, in words. Sweeps must begin at whole tiles.
inline const char* why_not_wgmma(const CascadeArgs& args, const DeviceLimits& limits,
                                 const CascadeLayout& layout) {
  if (const char* reason = why_no_wgmma(limits)) return reason;
  const int planes = args.dtype == DType::float32 ? 2 : 1;
  for (int v = 0; v < layout.select.weightings.num_views; ++v)
    if (planes * rounded_up(args.views[layout.select.used[v]].dim, 64) > 64 * WGMMA_KEY_BLOCKS)
      return "more features than a block can hold of 256 keys";
  if (layout.chunk % WGMMA_QUERIES != 0 && layout.chunk < args.num_queries) return "sweeps of no whole tiles";
  if (tuning().wgmma_parts > 0) return nullptr;
  if (args.num_queries <= 16) return "too few queries for a tile of 64";
  const int views = layout.select.weightings.num_views;
  const int64_t blocks =
      (args.num_keys + WGMMA_KEYS - 1) / WGMMA_KEYS * views * wgmma_parts(layout.chunk, args.num_keys, views);
  return blocks < WGMMA_BLOCKS / 2 ? "too few blocks for the device" : nullptr;
}

// Do blocks that form scores by wgmma split their keys? Those of every sweep and part do it anew.
inline bool blocks_split_keys(const CascadeArgs& args, const CascadeLayout& layout) {
  if (!layout.wgmma || args.dtype != DType::float32) return false;
  const int64_t times = layout.sweeps(args.num_queries) *
                        wgmma_parts(layout.chunk, args.num_keys, layout.select.weightings.num_views);
  return times <= (tuning().key_splits >= 0 ? tuning().key_splits : KEY_SPLITS);
}

// What the scores of a sweep may take of an L2.
inline int64_t ring_bytes(int64_t cache_bytes) { return cache_bytes / 8 * 5; }

// Queries a sweep; see the head of this file. Sweeps are of one size, for a short one takes as long as the
// rest.
inline void plan_chunk(int64_t num_queries, int64_t ring_a_query, int64_t bytes_a_query, int64_t cache_bytes,
                       CascadeLayout& layout) {
  const int64_t fitting = ring_bytes(cache_bytes) / ring_a_query / SWEEP_UNIT * SWEEP_UNIT;
  layout.in_cache = fitting >= SWEEP_QUERIES || num_queries * ring_a_query <= ring_bytes(cache_bytes);
  int64_t most = layout.in_cache ? std::max(fitting, SWEEP_UNIT)
                                 : std::min(SWEEP_QUERIES, HUGE_BYTES / std::max<int64_t>(bytes_a_query, 1));
  if (tuning().sweep > 0) most = tuning().sweep;
  most = std::max<int64_t>(1, most);
  const int64_t sweeps = std::max<int64_t>(1, (num_queries + most - 1) / most);
  layout.chunk = std::max<int64_t>(
      1, std::min({num_queries, most, rounded_up((num_queries + sweeps - 1) / sweeps, SWEEP_UNIT)}));
}

// Queries of a score tile. 128 reuse each key twice as often from shared memory as 64, and are taken where no
// tile is left half empty; the order of a sum is the same in all.
inline int score_tile_queries(int64_t chunk) {
  if (tuning().score_queries > 0) return tuning().score_queries;
  if (chunk <= 16) return 16;
  const bool half_empty = chunk < 256 && chunk % 128 > 0 && chunk % 128 <= 64;
  return half_empty ? 64 : 128;
}

// Null where one cluster serves the call, else why not, in words.
inline const char* why_not_tiny(const CascadeArgs& args, const DeviceLimits& limits,
                                const CascadeLayout& layout) {
  if (args.num_queries > TINY_QUERIES) return "more than 16 queries";
  if (args.num_keys > TINY_KEYS) return "more than 4096 entries";
  if (!limits.clusters_of_16) return "no clusters of 16 blocks on this device";
  for (int v = 0; v < layout.select.weightings.num_views; ++v)
    if (args.views[layout.select.used[v]].dim > TINY_DIM) return "more than 128 features";
  if (args.keep[args.num_stages - 1] > TINY_RESULT && args.num_keys > TINY_RESULT)
    return "results of more than 256";
  const bool split = args.dtype == DType::float32;
  return tiny_shared_bytes(split, layout.select.weightings.num_views, layout.select.planes, args.num_keys,
                           layout.select.shared_bytes) > limits.shared_bytes
             ? "more views than shared memory holds scores of"
             : nullptr;
}

// Null, or why the call cannot run. `gathered`: scores are not products of tiles, so features are used where
// they lie.
inline const char* plan_cascade(const CascadeArgs& args, const DeviceLimits& limits, void* workspace,
                                bool gathered, CascadeLayout& layout) {
  layout = {};
  SelectLayout& select = layout.select;
  if (const char* reason = plan_select(args, limits, select)) return reason;
  const int views = select.weightings.num_views, rows = select.weightings.rows;
  const int64_t N = args.num_keys;
  const bool listed = !select.lists_fit_shared();
  layout.pitch = score_pitch(N);
  layout.tiny = !gathered && !listed && !why_not_tiny(args, limits, layout);
  const int64_t ring_a_query = 4 * layout.pitch * select.planes;
  const int64_t list_a_query = listed ? int64_t{4} * select.longest * (rows + 1) : 0;
  plan_chunk(args.num_queries, ring_a_query, ring_a_query + list_a_query + 8 * select.sort_size,
             limits.cache_bytes, layout);
  layout.tile = score_tile_queries(layout.chunk);
  layout.wgmma = !layout.tiny && !gathered && N > 0 && !why_not_wgmma(args, limits, layout);
  layout.splits = blocks_split_keys(args, layout);
  Carver carver{static_cast<char*>(workspace)};
  for (int v = 0; v < views && !gathered; ++v) {
    const View& view = args.views[layout.select.used[v]];
    layout.queries[v] = layout.wgmma ? plan_packed(args.dtype, args.num_queries, view.dim, carver)
                                     : plan_planes(args.dtype, view.queries, view.query_stride,
                                                   args.num_queries, view.dim, carver);
    if (!layout.splits)
      layout.keys[v] = plan_planes(args.dtype, view.keys, view.key_stride, N, view.dim, carver);
  }
  layout.scores = carver.take<float>(select.planes * layout.chunk * layout.pitch);
  if (listed) select.lists = carver.take<uint32_t>(layout.chunk * (rows + 1) * select.longest);
  if (select.sort_size > 0) select.sorts = carver.take<uint64_t>(layout.chunk * select.sort_size);
  layout.bytes = carver.used;
  return nullptr;
}

}  // namespace cpr
