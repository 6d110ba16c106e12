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
#include "../../weightings.h"
#include "../device/carver.h"
#include "../device/device_limits.h"
#include "../device/tuning.h"
#include "tiny/memory.h"

namespace cpr {

constexpr int64_t SWEEP_QUERIES = 128, SWEEP_UNIT = 64;
constexpr int64_t HUGE_BYTES = int64_t{2} << 30;  // of scores and lists, unless one query needs more
constexpr uint32_t SORTED_IN_SHARED = 1024;       // longest result sorted where the bins were
constexpr int64_t SELECT_MEMORY_BYTES = 13696;    // of a block that selects, beside its lists (cascade.h)
// Threads that select for one query. Up to 4,096 entries are four steps of 256 threads, and four such blocks
// share a multiprocessor. Beyond, the 64 registers a thread of select_kernel and 65,536 of a multiprocessor
// allow two blocks of 512, which hide each other's barriers, where shared memory holds both lists (a block's
// own kilobyte counted); else one block of 1,024.
constexpr int SMALL_THREADS = 256, HALF_THREADS = 512, LARGE_THREADS = 1024;
constexpr int64_t LARGE_FROM = 4096;
// Selection by codes (select_codes.h): pairs of entries that a thread holds, where 256 or 512 select, and the
// longest result.
constexpr int FEW_PAIRS = 8, MANY_PAIRS = 16;
template <int PAIRS>
constexpr int CODED_THREADS = 32 * PAIRS;
static_assert(CODED_THREADS<FEW_PAIRS> == SMALL_THREADS && CODED_THREADS<MANY_PAIRS> == HALF_THREADS,
              "of both");
constexpr int64_t CODED_RESULT = 256;
// Scores on 9.0: a block holds WGMMA_KEYS keys of one view, at most WGMMA_KEY_BLOCKS times 64 features of a
// plane, and queries come 64 at a time. Parts share the queries until there are WGMMA_BLOCKS blocks, one for
// nearly every multiprocessor; where not even half of those come about, smaller tiles fill the device better.
constexpr int WGMMA_KEYS = 256, WGMMA_KEY_BLOCKS = 4;
constexpr int64_t WGMMA_QUERIES = 64, WGMMA_BLOCKS = 128;
// A block reads as many bytes of 256 float32 keys as of their planes, so that one that splits them costs
// instructions only, 12 K beside 6 K a tile of 64 queries, and saves a kernel that reads and writes all keys.
constexpr int64_t KEY_SPLITS = 2;

// The distinct weightings of the stages. Stages with the same weighting share a row.
struct Weightings {
  int num_views, rows, stages;
  float weights[MAX_ROWS * MAX_VIEWS];  // [rows, num_views]
  int8_t plain[MAX_ROWS];               // the view that a row judges by alone with weight 1, or -1
  uint8_t row_of_stage[MAX_STAGES];
  int biased;                 // the row of the last stage alone that key_bias is added to, or -1
  uint32_t keep[MAX_STAGES];  // at most num_keys
  int first;                  // the first stage that keeps fewer than num_keys; `stages` when none does
};

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
  Weightings weightings;
  int used[MAX_VIEWS];  // the views that some stage weighs, by their number in the call
  Planes queries[MAX_VIEWS], keys[MAX_VIEWS];
  int64_t pitch;            // of a row of scores
  uint32_t longest;         // list: what the first stage that drops something keeps, a multiple of 4
  uint32_t shared_entries;  // what the list in shared memory holds, a multiple of 4
  uint32_t paired;          // stages that are decided with the one before by the same codes, a bit each
  uint32_t coded_entries;   // the same of the first of two lists of codes; 0 where none are used
  int64_t select_bytes;     // of shared memory of a block that selects
  int64_t sort_size;        // entries to sort a query, a power of two; 0 when results are short
  int threads;              // of a block that selects
  int tile;                 // queries of a score tile
  int planes;               // of scores: a view's each, and one of each row that is not a view as it is
  uint8_t plane[MAX_ROWS];  // of each row
  float* scores;            // [planes][chunk, pitch]
  uint32_t* lists;          // [chunk][rows + 1, longest], null when shared memory holds the longest list
  uint64_t* sorts;          // [chunk][sort_size], null when results are short
  int64_t bytes;            // of workspace

  int64_t sweeps(int64_t num_queries) const { return (num_queries + chunk - 1) / chunk; }
};

// Floats between the score rows of two queries.
inline int64_t score_pitch(int64_t num_keys) { return std::max<int64_t>(rounded_up(num_keys, 4), 4); }

inline int64_t select_shared_bytes(int rows, uint32_t entries) {
  return SELECT_MEMORY_BYTES + int64_t{rows + 1} * entries * 4;
}

// The rows that stages judge by, over the views that some stage weighs.
inline const char* plan_rows(const CascadeArgs& args, CascadeLayout& layout) {
  if (args.num_stages > MAX_STAGES) return "the CUDA kernels run at most 32 stages";
  Weightings& weightings = layout.weightings;
  const int V = args.num_views;
  int views = 0;
  for (int v = 0; v < V; ++v) {
    bool weighed = false;
    for (int s = 0; s < args.num_stages; ++s) weighed = weighed || args.weights[s * V + v] != 0;
    if (!weighed) continue;
    if (views == MAX_VIEWS) return "the CUDA kernels weigh at most 8 views";
    if (args.views[v].dim > INT32_MAX - 64) return "a view of more than 2^31 features";
    layout.used[views++] = v;
  }
  weightings.num_views = views;
  weightings.stages = args.num_stages;
  weightings.rows = 0;
  weightings.biased = -1;
  for (int s = 0; s < args.num_stages; ++s) {
    const int first = first_same_weighting(args.weights, V, s);
    const bool biased = args.key_bias && s + 1 == args.num_stages;
    if (first < s && !biased) {
      weightings.row_of_stage[s] = weightings.row_of_stage[first];
    } else {
      if (weightings.rows == MAX_ROWS)
        return "the CUDA kernels judge by at most 8 distinct weightings of the views";
      float* row = weightings.weights + weightings.rows * views;
      for (int v = 0; v < views; ++v) row[v] = args.weights[s * V + layout.used[v]];
      weightings.plain[weightings.rows] = static_cast<int8_t>(biased ? -1 : only_view(row, views));
      if (biased) weightings.biased = weightings.rows;
      weightings.row_of_stage[s] = static_cast<uint8_t>(weightings.rows++);
    }
    weightings.keep[s] = static_cast<uint32_t>(std::min(args.keep[s], args.num_keys));
  }
  weightings.first = 0;
  while (weightings.first < weightings.stages && weightings.keep[weightings.first] >= args.num_keys)
    ++weightings.first;
  return nullptr;
}

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
  for (int v = 0; v < layout.weightings.num_views; ++v)
    if (planes * rounded_up(args.views[layout.used[v]].dim, 64) > 64 * WGMMA_KEY_BLOCKS)
      return "more features than a block can hold of 256 keys";
  if (layout.chunk % WGMMA_QUERIES != 0 && layout.chunk < args.num_queries) return "sweeps of no whole tiles";
  if (tuning().wgmma_parts > 0) return nullptr;
  if (args.num_queries <= 16) return "too few queries for a tile of 64";
  const int views = layout.weightings.num_views;
  const int64_t blocks =
      (args.num_keys + WGMMA_KEYS - 1) / WGMMA_KEYS * views * wgmma_parts(layout.chunk, args.num_keys, views);
  return blocks < WGMMA_BLOCKS / 2 ? "too few blocks for the device" : nullptr;
}

// Do blocks that form scores by wgmma split their keys? Those of every sweep and part do it anew.
inline bool blocks_split_keys(const CascadeArgs& args, const CascadeLayout& layout) {
  if (!layout.wgmma || args.dtype != DType::float32) return false;
  const int64_t times =
      layout.sweeps(args.num_queries) * wgmma_parts(layout.chunk, args.num_keys, layout.weightings.num_views);
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

// Where lists are and how many threads work on a query; true when the longest list is in global memory.
inline bool plan_lists(int64_t num_keys, const DeviceLimits& limits, CascadeLayout& layout) {
  const Weightings& weightings = layout.weightings;
  const int64_t most = weightings.first < weightings.stages ? weightings.keep[weightings.first] : num_keys;
  layout.longest = static_cast<uint32_t>(std::max<int64_t>(rounded_up(most, 4), 4));
  const int64_t an_entry = 4 * (weightings.rows + 1);
  const int64_t room = (limits.shared_bytes - SELECT_MEMORY_BYTES) / an_entry / 4 * 4;
  layout.shared_entries = static_cast<uint32_t>(std::min<int64_t>(layout.longest, room));
  const bool two_fit =
      select_shared_bytes(weightings.rows, layout.shared_entries) <= (limits.shared_bytes + 1024) / 2 - 1024;
  layout.threads = num_keys <= LARGE_FROM ? SMALL_THREADS : two_fit ? HALF_THREADS : LARGE_THREADS;
  if (tuning().select_threads > 0) layout.threads = tuning().select_threads;
  return layout.longest > layout.shared_entries;
}

// How much shared memory a block that selects takes, and whether it does so by codes: by at most two rows,
// where threads hold all entries, and lists of those that stay after every second stage fit.
inline void plan_codes(int64_t num_keys, const DeviceLimits& limits, CascadeLayout& layout) {
  const Weightings& weightings = layout.weightings;
  const int pairs = layout.threads / 32;
  layout.select_bytes = select_shared_bytes(weightings.rows, layout.shared_entries);
  if (weightings.rows > 2 || weightings.stages > 31 || layout.longest > layout.shared_entries ||
      weightings.first == weightings.stages || layout.threads > HALF_THREADS ||
      num_keys > int64_t{2} * pairs * layout.threads || weightings.keep[weightings.stages - 1] > CODED_RESULT)
    return;
  int64_t entries[2] = {0, 0}, n = num_keys;
  for (int s = weightings.first, list = 0; s < weightings.stages; list = 1 - list) {
    const int judge = weightings.row_of_stage[s];
    for (int decided = 0; decided < 2 && s < weightings.stages; ++decided) {
      if (decided == 1 && weightings.row_of_stage[s] == judge) break;
      if (weightings.keep[s] >= n) return;
      layout.paired |= static_cast<uint32_t>(decided) << s;
      n = weightings.keep[s++];
    }
    entries[list] = std::max(entries[list], rounded_up(n, 32 * 2 * pairs));  // of whole warps
  }
  const int64_t bytes = SELECT_MEMORY_BYTES + 8 * (entries[0] + entries[1]);
  if (bytes > limits.shared_bytes) return;
  layout.coded_entries = static_cast<uint32_t>(entries[0]);
  layout.select_bytes = std::max(layout.select_bytes, bytes);
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
  for (int v = 0; v < layout.weightings.num_views; ++v)
    if (args.views[layout.used[v]].dim > TINY_DIM) return "more than 128 features";
  if (args.keep[args.num_stages - 1] > TINY_RESULT && args.num_keys > TINY_RESULT)
    return "results of more than 256";
  const bool split = args.dtype == DType::float32;
  return tiny_shared_bytes(split, layout.weightings.num_views, layout.planes, args.num_keys,
                           layout.select_bytes) > limits.shared_bytes
             ? "more views than shared memory holds scores of"
             : nullptr;
}

// Null, or why the call cannot run. `gathered`: scores are not products of tiles, so features are used where
// they lie.
inline const char* plan_cascade(const CascadeArgs& args, const DeviceLimits& limits, void* workspace,
                                bool gathered, CascadeLayout& layout) {
  layout = {};
  if (const char* reason = plan_rows(args, layout)) return reason;
  const int views = layout.weightings.num_views, rows = layout.weightings.rows;
  const int64_t N = args.num_keys, k = std::min(args.keep[args.num_stages - 1], N);
  layout.pitch = score_pitch(N);
  const bool listed = plan_lists(N, limits, layout), sorted = k > SORTED_IN_SHARED;
  plan_codes(N, limits, layout);
  if (sorted)
    for (layout.sort_size = SORTED_IN_SHARED; layout.sort_size < k;) layout.sort_size *= 2;
  layout.planes = views;
  for (int r = 0; r < rows; ++r) {
    const int plain = layout.weightings.plain[r];
    layout.plane[r] = static_cast<uint8_t>(plain >= 0 ? plain : layout.planes++);
  }
  layout.tiny = !gathered && !listed && !why_not_tiny(args, limits, layout);
  const int64_t ring_a_query = 4 * layout.pitch * layout.planes;
  const int64_t list_a_query = listed ? int64_t{4} * layout.longest * (rows + 1) : 0;
  plan_chunk(args.num_queries, ring_a_query, ring_a_query + list_a_query + 8 * layout.sort_size,
             limits.cache_bytes, layout);
  layout.tile = score_tile_queries(layout.chunk);
  layout.wgmma = !layout.tiny && !gathered && N > 0 && !why_not_wgmma(args, limits, layout);
  layout.splits = blocks_split_keys(args, layout);
  Carver carver{static_cast<char*>(workspace)};
  for (int v = 0; v < views && !gathered; ++v) {
    const View& view = args.views[layout.used[v]];
    layout.queries[v] = layout.wgmma ? plan_packed(args.dtype, args.num_queries, view.dim, carver)
                                     : plan_planes(args.dtype, view.queries, view.query_stride,
                                                   args.num_queries, view.dim, carver);
    if (!layout.splits)
      layout.keys[v] = plan_planes(args.dtype, view.keys, view.key_stride, N, view.dim, carver);
  }
  layout.scores = carver.take<float>(layout.planes * layout.chunk * layout.pitch);
  if (listed) layout.lists = carver.take<uint32_t>(layout.chunk * (rows + 1) * layout.longest);
  if (sorted) layout.sorts = carver.take<uint64_t>(layout.chunk * layout.sort_size);
  layout.bytes = carver.used;
  return nullptr;
}

}  // namespace cpr
