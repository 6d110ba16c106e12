// Scores of listed candidates: one warp a few rows at a time, read where they lie. A gather is bound by
// memory, so there is nothing for tensor cores to do.
#pragma once
#include "../device/host.h"
#include "../score.h"

namespace cpr {

constexpr int GATHER_THREADS = 256;
constexpr int ROWS_AT_ONCE = 4;  // a warp's rows whose loads are in flight together
constexpr uint32_t GATHERED = GATHER_THREADS / 32 * ROWS_AT_ONCE;  // candidates a block

struct GatherView {
  const void* queries;
  const void* keys;
  int64_t query_stride, key_stride, dim;
};

struct GatherArgs {
  GatherView views[MAX_VIEWS];
  const int64_t* listed;  // [B, count] ascending but for -1, rows listed_stride apart
  int64_t listed_stride;
  uint32_t count;       // C
  int64_t first_query;  // of this sweep
  float* out;           // [views][queries of the sweep, pitch]
  int64_t view_stride, pitch;
  const int64_t* query_ids;  // [B] or null
  const int64_t* key_ids;    // [N] or null
  const uint8_t* exclude;    // [B, N] or null
  int64_t exclude_stride;
};

CPR_DEVICE bool never_selected(const GatherArgs& args, int64_t query, int64_t entry) {
  if (entry < 0) return true;
  if (args.key_ids) {
    const int64_t id = args.key_ids[entry];
    if (id < 0 || (args.query_ids && args.query_ids[query] == id)) return true;
  }
  return args.exclude && args.exclude[query * args.exclude_stride + entry] != 0;
}

// Candidates [first, first + ROWS_AT_ONCE) of a query in one view, by one warp. The order of a sum depends on
// the features' size alone: 32 running sums, then a tree.
template <int TYPE>
CPR_DEVICE void gather_rows(const GatherArgs& args, uint32_t view_index, uint32_t in_sweep, uint32_t first) {
  constexpr DType TYPED = static_cast<DType>(TYPE);
  const GatherView& view = args.views[view_index];
  const int64_t query = args.first_query + in_sweep;
  const int64_t* listed = args.listed + query * args.listed_stride;
  const int lane = thread_index() & 31;
  int64_t entry[ROWS_AT_ONCE];
  float sum[ROWS_AT_ONCE];
#pragma unroll
  for (int i = 0; i < ROWS_AT_ONCE; ++i) {
    const uint32_t at = first + static_cast<uint32_t>(i);
    entry[i] = at < args.count ? listed[at] : -1;
    sum[i] = 0.0f;
  }
  for (int64_t d = lane; d < view.dim; d += 32) {
    const float of_query = element(view.queries, TYPED, query * view.query_stride + d);
#pragma unroll
    for (int i = 0; i < ROWS_AT_ONCE; ++i)
      if (entry[i] >= 0) sum[i] += of_query * element(view.keys, TYPED, entry[i] * view.key_stride + d);
  }
#pragma unroll
  for (int step = 16; step; step >>= 1)
#pragma unroll
    for (int i = 0; i < ROWS_AT_ONCE; ++i) sum[i] += shuffle_xor(sum[i], step);
  if (lane != 0) return;
  float* out = args.out + view_index * args.view_stride + in_sweep * args.pitch;
#pragma unroll
  for (int i = 0; i < ROWS_AT_ONCE; ++i)
    if (first + static_cast<uint32_t>(i) < args.count)
      out[first + static_cast<uint32_t>(i)] =
          never_selected(args, query, entry[i]) ? float_of(0x7FC00000u) : sum[i];
}

namespace {

// Grid: x over blocks of GATHERED candidates, those of one query next to each other; y over views.
template <int TYPE>
CPR_KERNEL(GATHER_THREADS, 4)
gather_kernel(GatherArgs args) {
  const uint32_t blocks = (args.count + GATHERED - 1) / GATHERED;
  const uint32_t warp = static_cast<uint32_t>(thread_index()) / 32;
  gather_rows<TYPE>(args, block_index_y(), block_index() / blocks,
                    block_index() % blocks * GATHERED + warp * ROWS_AT_ONCE);
}

template <int TYPE>
const char* launch_gather(const GatherArgs& args, int64_t queries, int views, void* stream) {
  Grid grid;
  grid.x = static_cast<uint32_t>((args.count + GATHERED - 1) / GATHERED * queries);
  grid.y = static_cast<uint32_t>(views);
  grid.threads = GATHER_THREADS;
  return launch<gather_kernel<TYPE>>(grid, args, stream);
}

}  // namespace
}  // namespace cpr
