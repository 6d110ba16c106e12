// cpr::cascade_topk on CUDA. Scores of a sweep of queries go to a ring that stays in L2, never B x N at once;
// then one block a query runs all stages by threshold; for tiny calls one cluster does both. Which way a call
// goes: layout.h.
#include <algorithm>

#include "../device/host.h"
#include "../prepare.h"
#include "../score.h"
#include "../select/launch.h"
#include "../tiny/launch.h"
#include "launch_score_wgmma.h"
#include "layout.h"

namespace cpr {
namespace {

// Grid: x over tiles, those of one block of keys next to each other; y over views.
template <bool BFLOAT, int PLANES, int BM>
CPR_KERNEL(SCORE_THREADS, PLANES == 2 && BM == 128 ? 1 : 2)
score_kernel(ScoreArgs args) {
  CPR_SHARED_MEMORY(shared);
  await_previous_kernel();
  let_next_kernel_start();
  const uint32_t query_tiles = (args.num_queries + BM - 1) / BM;
  score_tile<BFLOAT, PLANES, BM>(args, static_cast<int>(block_index_y()), block_index() % query_tiles * BM,
                                 block_index() / query_tiles * TILE_KEYS, shared);
}

// One operand of a view: used where it lies, or prepared, which is then added to the list. float32 rows that
// are not prepared have no planes.
Operand operand(const Planes& planes, const PrepareArgs& rows, PrepareList& list, int& count) {
  if (!planes.prepared && rows.split)
    return {nullptr, 0, 0, nullptr, static_cast<const float*>(rows.rows), rows.stride};
  if (!planes.prepared) return {static_cast<const uint16_t*>(rows.rows), rows.stride, 0, nullptr, nullptr, 0};
  PrepareArgs& prepare = list.of[count++];
  prepare = rows;
  prepare.padded = static_cast<int>(planes.padded);
  prepare.planes = planes.planes;
  prepare.exponents = planes.exponents;
  prepare.packed = planes.packed;
  return {planes.planes,
          planes.padded,
          rows.count * planes.padded,
          planes.exponents,
          rows.split ? static_cast<const float*>(rows.rows) : nullptr,
          rows.stride};
}

PrepareArgs rows_of(DType dtype, const void* rows, int64_t stride, int64_t count, int64_t dim) {
  const bool split = dtype == DType::float32;
  return {rows, stride, count, static_cast<int>(dim), 0, dtype, split, LOW_SCALE, nullptr, nullptr};
}

// All of a score kernel's arguments but what changes from sweep to sweep, and what must be prepared before.
ScoreArgs score_args(const CascadeArgs& args, const CascadeLayout& layout, PrepareList& list, int& count) {
  ScoreArgs score{};
  score.num_views = layout.select.weightings.num_views;
  for (int v = 0; v < score.num_views; ++v) {
    const View& view = args.views[layout.select.used[v]];
    score.views[v].plain_dim = static_cast<int>(view.dim);
    score.views[v].dim = static_cast<int>(rounded_up(view.dim, 8));
    score.views[v].queries = operand(
        layout.queries[v], rows_of(args.dtype, view.queries, view.query_stride, args.num_queries, view.dim),
        list, count);
    score.views[v].keys =
        operand(layout.keys[v], rows_of(args.dtype, view.keys, view.key_stride, args.num_keys, view.dim),
                list, count);
  }
  score.num_keys = static_cast<uint32_t>(args.num_keys);
  score.key_ids = args.key_ids;
  score.exclude_stride = args.exclude_stride;
  score.pitch = layout.pitch;
  score.view_stride = layout.chunk * layout.pitch;
  score.out = layout.scores;
  return score;
}

// What changes from sweep to sweep.
void aim(const CascadeArgs& args, int64_t first, int64_t count, ScoreArgs& score) {
  score.first_query = first;
  score.num_queries = static_cast<uint32_t>(count);
  score.query_ids = args.query_ids ? args.query_ids + first : nullptr;
  score.exclude = args.exclude ? args.exclude + first * args.exclude_stride : nullptr;
}

template <bool BFLOAT, int PLANES, int BM>
const char* launch_score(const ScoreArgs& args, bool follows, void* stream) {
  Grid grid;
  grid.x = (args.num_queries + BM - 1) / BM * ((args.num_keys + TILE_KEYS - 1) / TILE_KEYS);
  grid.y = static_cast<uint32_t>(args.num_views);
  grid.threads = SCORE_THREADS;
  grid.shared = SCORE_SHARED_BYTES<BM, PLANES>;
  grid.follows = follows;
  return launch<score_kernel<BFLOAT, PLANES, BM>>(grid, args, stream);
}

template <bool BFLOAT, int PLANES>
const char* run(const CascadeArgs& args, const CascadeLayout& layout, void* stream) {
  if (layout.tiny) {
    bool took = false;
    const char* error = launch_tiny(args, layout.select, &took, stream);
    if (took) return error;
  }
  PrepareList list{};
  int prepares = 0;
  ScoreArgs score = score_args(args, layout, list, prepares);
  if (const char* error = launch_prepare(list, prepares, stream)) return error;
  for (int64_t first = 0; first < args.num_queries; first += layout.chunk) {
    const int64_t count = std::min(layout.chunk, args.num_queries - first);
    aim(args, first, count, score);
    const bool follows = prepares > 0 || first > 0;
    const char* error = nullptr;
    if (layout.wgmma)
      error = launch_score_wgmma(args.dtype, score, follows, stream);
    else if (args.num_keys > 0)
      error = layout.tile == 16   ? launch_score<BFLOAT, PLANES, 16>(score, follows, stream)
              : layout.tile == 64 ? launch_score<BFLOAT, PLANES, 64>(score, follows, stream)
                                  : launch_score<BFLOAT, PLANES, 128>(score, follows, stream);
    if (!error)
      error = launch_select(select_args(args, layout.select, layout.score_rows(), first, count),
                            layout.select, args.num_keys > 0, stream);
    if (error) return error;
  }
  return nullptr;
}

}  // namespace

const char* cascade_topk_cuda_workspace(const CascadeArgs& args, int64_t* bytes) {
  CascadeLayout layout;
  const char* reason = plan_cascade(args, limits_of_current_device(), nullptr, false, layout);
  *bytes = layout.bytes;
  return reason;
}

const char* cascade_topk_cuda(const CascadeArgs& args, void* workspace, int64_t bytes, void* stream) {
  if (args.num_queries == 0) return nullptr;
  CascadeLayout layout;
  if (const char* reason = plan_cascade(args, limits_of_current_device(), workspace, false, layout))
    return reason;
  if (layout.bytes > bytes) return "the workspace is smaller than cascade_topk_cuda_workspace says";
  switch (args.dtype) {
    case DType::float32:
      return run<false, 2>(args, layout, stream);
    case DType::bfloat16:
      return run<true, 1>(args, layout, stream);
    case DType::float16:
      return run<false, 1>(args, layout, stream);
  }
  return "an unknown dtype";
}

}  // namespace cpr
