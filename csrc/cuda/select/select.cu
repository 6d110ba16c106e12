// The kernels that select, and their launch.
#include "../device/host.h"
#include "launch.h"

namespace cpr {
namespace {

// Grid: x over queries. PAIRS: of codes that a thread holds; 0: by scores alone.
template <int PAIRS>
CPR_KERNEL(PAIRS ? CODED_THREADS<PAIRS> : LARGE_THREADS, PAIRS == MANY_PAIRS ? 2
                                                         : PAIRS             ? 4
                                                                             : 1)
select_kernel(SelectArgs args) {
  CPR_SHARED_MEMORY(shared);
  await_previous_kernel();
  let_next_kernel_start();
  select_query<PAIRS ? Selection::codes : Selection::scores, PAIRS>(args, block_index(), block_threads(),
                                                                    shared);
}

}  // namespace

SelectArgs select_args(const CascadeArgs& args, const SelectLayout& layout, const ScoreRows& rows,
                       int64_t first, int64_t count) {
  SelectArgs select{};
  static_cast<Weightings&>(select) = layout.weightings;
  select.scores = rows.scores;
  select.plane_stride = rows.plane_stride;
  select.pitch = rows.pitch;
  for (int r = 0; r < layout.weightings.rows; ++r) select.plane[r] = layout.plane[r];
  select.mixes = layout.planes > layout.weightings.num_views;
  select.key_bias = args.key_bias ? args.key_bias + first * args.bias_stride : nullptr;
  select.bias_a_query = args.bias_stride > 0;
  select.num_keys = static_cast<uint32_t>(args.num_keys);
  select.num_queries = static_cast<uint32_t>(count);
  select.longest = layout.longest;
  select.lists = layout.lists;
  select.sorts = layout.sorts;
  select.sort_size = layout.sort_size;
  select.shared_entries = layout.shared_entries;
  select.paired = layout.paired;
  select.coded_entries = layout.coded_entries;
  select.k = args.keep[args.num_stages - 1];
  select.indices = args.indices + first * select.k;
  select.best = args.scores + first * select.k;
  return select;
}

const char* launch_select(const SelectArgs& args, const SelectLayout& layout, bool follows, void* stream) {
  Grid grid;
  grid.x = args.num_queries;
  grid.threads = layout.threads;
  grid.shared = layout.shared_bytes;
  grid.follows = follows;
  if (layout.coded_entries == 0) return launch<select_kernel<0>>(grid, args, stream);
  return layout.threads == CODED_THREADS<FEW_PAIRS> ? launch<select_kernel<FEW_PAIRS>>(grid, args, stream)
                                                    : launch<select_kernel<MANY_PAIRS>>(grid, args, stream);
}

}  // namespace cpr
