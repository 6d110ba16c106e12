// The kernels of tiny calls (tiny.h) and their launch.
#include "../device/host.h"
#include "launch.h"
#include "tiny.h"

namespace cpr {
namespace {

// Grid: one cluster of TINY_BLOCKS. Empty where there are no clusters: the planner never takes it there.
template <bool BFLOAT, int PLANES>
CPR_KERNEL(TINY_THREADS, 1)
tiny_kernel(TinyArgs args) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  CPR_SHARED_MEMORY(shared);
  cascade_tiny<BFLOAT, PLANES>(args, shared);
#endif
}

TinyRows rows_of(const void* rows, int64_t stride, int64_t dim, int64_t size) {
  const bool whole =
      reinterpret_cast<uintptr_t>(rows) % 16 == 0 && stride * size % 16 == 0 && dim * size % 16 == 0;
  return {rows, stride, whole, whole && dim == TINY_DIM};
}

TinyArgs tiny_args(const CascadeArgs& args, const SelectLayout& layout) {
  TinyArgs tiny{};
  const int64_t size = args.dtype == DType::float32 ? 4 : 2;
  tiny.num_views = layout.weightings.num_views;
  for (int v = 0; v < tiny.num_views; ++v) {
    const View& view = args.views[layout.used[v]];
    tiny.views[v] = {rows_of(view.queries, view.query_stride, view.dim, size),
                     rows_of(view.keys, view.key_stride, view.dim, size), static_cast<int>(view.dim)};
  }
  tiny.num_queries = static_cast<uint32_t>(args.num_queries);
  tiny.num_keys = static_cast<uint32_t>(args.num_keys);
  tiny.query_ids = args.query_ids;
  tiny.key_ids = args.key_ids;
  tiny.exclude = args.exclude;
  tiny.exclude_stride = args.exclude_stride;
  const ScoreRows in_shared{nullptr, tiny_pitch(args.num_keys), 0};
  static_cast<SelectArgs&>(tiny.select) = select_args(args, layout, in_shared, 0, args.num_queries);
  tiny.selection_at = static_cast<uint32_t>(layout.planes * tiny_pitch(args.num_keys) * 4);
  return tiny;
}

template <bool BFLOAT, int PLANES>
const char* launch_as(const CascadeArgs& args, const SelectLayout& layout, bool* took, void* stream) {
  Grid grid;
  grid.x = grid.cluster = TINY_BLOCKS;
  grid.threads = TINY_THREADS;
  grid.shared = tiny_shared_bytes(PLANES == 2, layout.weightings.num_views, layout.planes, args.num_keys,
                                  layout.shared_bytes);
  *took = cluster_fits(tiny_kernel<BFLOAT, PLANES>, grid);
  return *took ? launch<tiny_kernel<BFLOAT, PLANES>>(grid, tiny_args(args, layout), stream) : nullptr;
}

}  // namespace

const char* launch_tiny(const CascadeArgs& args, const SelectLayout& layout, bool* took, void* stream) {
  switch (args.dtype) {
    case DType::float32:
      return launch_as<false, 2>(args, layout, took, stream);
    case DType::bfloat16:
      return launch_as<true, 1>(args, layout, took, stream);
    case DType::float16:
      return launch_as<false, 1>(args, layout, took, stream);
  }
  return "an unknown dtype";
}

}  // namespace cpr
