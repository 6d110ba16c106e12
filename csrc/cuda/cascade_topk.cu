// cpr::cascade_topk on CUDA. Scores of a sweep of queries go to a ring that stays in L2, never B x N at once;
// then one block a query runs all stages by threshold. Three shapes of the same two steps:
//   tiny  B <= 16, N <= 4,096, 9.0 and newer: one cluster of 16 blocks splits the features, scores and
//         selects, with two cluster barriers between. One launch, where three would wait about 2 us each for
//         the last. Sixteen multiprocessors at 64 bytes a clock read 4 MB of keys in 2.3 us, less than the
//         launches saved; at N = 16,384 they would take 9 us, where the whole device takes 1.
//   ring  the scores of 128 queries or more, or of all there are, fit half the L2 (the rest is for keys, and
//         for what the two halves of an L2 hold twice): sweeps of that many, all of one size.
//   huge  they do not: sweeps of up to 128 queries through device memory. A sweep reads 4 D bytes a key and
//         view, 4 D / 128 = 4 bytes a score at D = 128, as many as writing the score: fewer queries a sweep
//         would be bound by keys.
// All rules are computed, none is measured yet; bench/gpu_tune.py times the others.
#include <algorithm>

#include "../cascade_rerank.h"
#include "cascade.h"
#include "gather.h"
#include "host.h"
#include "prepare.h"
#include "score.h"

namespace cpr {
namespace {

constexpr int64_t TINY_QUERIES = 16, TINY_KEYS = 4096;
constexpr uint32_t TINY_BLOCKS = 16;
constexpr int64_t SWEEP_QUERIES = 128, SWEEP_UNIT = 64;
constexpr int64_t HUGE_BYTES = int64_t{2} << 30;  // of scores and lists, unless one query needs more
// Threads that select for one query. Up to 4,096 entries are four steps of 256 threads, and four such blocks
// share a multiprocessor. Beyond, the 64 registers a thread of select_kernel and 65,536 of a multiprocessor
// allow two blocks of 512, which hide each other's barriers, where shared memory holds both lists (a block's
// own kilobyte counted); else one block of 1,024.
constexpr int SMALL_THREADS = 256, HALF_THREADS = 512, LARGE_THREADS = 1024;
constexpr int64_t LARGE_FROM = 4096;

struct TinyArgs {
  PrepareList prepare;
  int prepares;
  ScoreArgs score;
  SelectArgs select;
};
static_assert(sizeof(TinyArgs) <= 4096, "passed by value");

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

// Grid: x over queries.
CPR_KERNEL(LARGE_THREADS, 1) select_kernel(SelectArgs args) {
  CPR_SHARED_MEMORY(shared);
  await_previous_kernel();
  let_next_kernel_start();
  select_query(args, block_index(), shared);
}

// Grid: one cluster of TINY_BLOCKS. Empty where there are no clusters: plan() never takes it there.
template <bool BFLOAT, int PLANES>
CPR_KERNEL(SCORE_THREADS, 1)
tiny_kernel(TinyArgs args) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  CPR_SHARED_MEMORY(shared);
  for (int i = 0; i < args.prepares; ++i) prepare_rows(args.prepare.of[i], block_index(), TINY_BLOCKS);
  sync_cluster();
  const uint32_t views = static_cast<uint32_t>(args.score.num_views);
  const uint32_t jobs = (args.score.num_keys + TILE_KEYS - 1) / TILE_KEYS * views;
  for (uint32_t job = block_index(); job < jobs; job += TINY_BLOCKS)
    score_tile<BFLOAT, PLANES, 16>(args.score, static_cast<int>(job % views), 0, job / views * TILE_KEYS,
                                   shared);
  sync_cluster();
  for (uint32_t query = block_index(); query < args.select.num_queries; query += TINY_BLOCKS)
    select_query(args.select, query, shared);
#endif
}

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// A call cut up: which path, how many queries a sweep, and where everything lies in the workspace.
struct Layout {
  bool tiny, in_cache;
  int64_t chunk;
  PrepareList prepare;
  int prepares;
  ScoreArgs score;  // but for what changes from sweep to sweep
  SelectArgs select;
  int threads;  // of a block that selects
  int64_t bytes;
};

// The view that a row of weights takes as it is, alone; -1 when it weighs or adds.
int only_view(const float* row, int views) {
  int found = -1;
  for (int v = 0; v < views; ++v) {
    if (row[v] == 0.0f) continue;
    if (found >= 0 || row[v] != 1.0f) return -1;
    found = v;
  }
  return found;
}

// The rows that stages judge by, over the views that some stage weighs; those views' numbers in `used`.
const char* plan_rows(const CascadeArgs& args, SelectArgs& select, int (&used)[MAX_VIEWS]) {
  if (args.num_stages > MAX_STAGES) return "the CUDA kernels run at most 32 stages";
  const int V = args.num_views;
  int views = 0;
  for (int v = 0; v < V; ++v) {
    bool weighed = false;
    for (int s = 0; s < args.num_stages; ++s) weighed = weighed || args.weights[s * V + v] != 0;
    if (!weighed) continue;
    if (views == MAX_VIEWS) return "the CUDA kernels weigh at most 8 views";
    used[views++] = v;
  }
  select.num_views = views;
  select.stages = args.num_stages;
  select.rows = 0;
  for (int s = 0; s < args.num_stages; ++s) {
    float row[MAX_VIEWS];
    for (int v = 0; v < views; ++v) row[v] = args.weights[s * V + used[v]];
    int found = 0;
    while (found < select.rows && !std::equal(row, row + views, select.weights + found * views)) ++found;
    if (found == select.rows) {
      if (select.rows == MAX_ROWS)
        return "the CUDA kernels judge by at most 8 distinct weightings of the views";
      std::copy(row, row + views, select.weights + select.rows * views);
      select.plain[select.rows++] = static_cast<int8_t>(only_view(row, views));
    }
    select.row_of_stage[s] = static_cast<uint8_t>(found);
    select.keep[s] = static_cast<uint32_t>(std::min(args.keep[s], args.num_keys));
  }
  return nullptr;
}

bool on_sixteen_bytes(const void* rows, int64_t stride, int64_t dim) {
  return reinterpret_cast<uintptr_t>(rows) % 16 == 0 && stride % 8 == 0 && dim % 8 == 0;
}

// One operand of a view: used where it lies, or prepared in the workspace.
Operand plan_operand(const CascadeArgs& args, const void* rows, int64_t stride, int64_t count, int64_t dim,
                     Carver& carver, Layout& layout) {
  const bool split = args.dtype == DType::float32;
  if (!split && on_sixteen_bytes(rows, stride, dim))
    return {static_cast<const uint16_t*>(rows), stride, 0, nullptr, nullptr, 0};
  const int64_t padded = round_up(dim, 8);
  PrepareArgs& prepare = layout.prepare.of[layout.prepares++];
  prepare = {rows,      stride,  count,  static_cast<int>(dim), static_cast<int>(padded), args.dtype, split,
             LOW_SCALE, nullptr, nullptr};
  prepare.planes = carver.take<uint16_t>((split ? 2 : 1) * count * padded);
  if (split) prepare.exponents = carver.take<int32_t>(count);
  return {prepare.planes,
          padded,
          count * padded,
          prepare.exponents,
          split ? static_cast<const float*>(rows) : nullptr,
          stride};
}

// Queries a sweep; see the head of this file. Sweeps are of one size, for a short one takes as long as the
// rest.
void plan_chunk(int64_t num_queries, int64_t ring_a_query, int64_t bytes_a_query, int64_t cache_bytes,
                Layout& layout) {
  const int64_t fitting = cache_bytes / 2 / ring_a_query / SWEEP_UNIT * SWEEP_UNIT;
  layout.in_cache = fitting >= SWEEP_QUERIES || num_queries * ring_a_query <= cache_bytes / 2;
  int64_t most = layout.in_cache ? std::max(fitting, SWEEP_UNIT)
                                 : std::min(SWEEP_QUERIES, HUGE_BYTES / std::max<int64_t>(bytes_a_query, 1));
  if (tuning().sweep > 0) most = tuning().sweep;
  most = std::max<int64_t>(1, most);
  const int64_t sweeps = std::max<int64_t>(1, (num_queries + most - 1) / most);
  layout.chunk = std::max<int64_t>(
      1, std::min({num_queries, most, round_up((num_queries + sweeps - 1) / sweeps, SWEEP_UNIT)}));
}

// Where lists lie and how many threads work on a query; true when the longest list lies in global memory.
bool plan_lists(int64_t num_keys, const DeviceLimits& limits, Layout& layout) {
  SelectArgs& select = layout.select;
  select.first = 0;
  while (select.first < select.stages && select.keep[select.first] >= num_keys) ++select.first;
  const int64_t most = select.first < select.stages ? select.keep[select.first] : num_keys;
  select.longest = static_cast<uint32_t>(std::max<int64_t>(round_up(most, 4), 4));
  const int64_t fixed = select_shared_bytes(select.rows, 0), an_entry = 4 * (select.rows + 1);
  const int64_t room = (limits.shared_bytes - fixed) / an_entry / 4 * 4;
  select.shared_entries = static_cast<uint32_t>(std::min<int64_t>(select.longest, room));
  const bool two_fit =
      select_shared_bytes(select.rows, select.shared_entries) <= (limits.shared_bytes + 1024) / 2 - 1024;
  layout.threads = num_keys <= LARGE_FROM ? SMALL_THREADS : two_fit ? HALF_THREADS : LARGE_THREADS;
  if (tuning().select_threads > 0) layout.threads = tuning().select_threads;
  return select.longest > select.shared_entries;
}

// `gathered`: scores are not products of tiles, so features are used where they lie.
const char* plan(const CascadeArgs& args, const DeviceLimits& limits, void* workspace, Layout& layout,
                 bool gathered = false) {
  layout = {};
  int used[MAX_VIEWS];
  if (const char* reason = plan_rows(args, layout.select, used)) return reason;
  SelectArgs& select = layout.select;
  ScoreArgs& score = layout.score;
  const int64_t N = args.num_keys, k = args.keep[args.num_stages - 1];
  Carver carver{static_cast<char*>(workspace)};
  for (int v = 0; v < select.num_views; ++v) {
    const View& view = args.views[used[v]];
    if (view.dim > INT32_MAX - 64) return "a view of more than 2^31 features";
    score.views[v].plain_dim = static_cast<int>(view.dim);
    score.views[v].dim = static_cast<int>(round_up(view.dim, 8));
    if (gathered) continue;
    score.views[v].queries =
        plan_operand(args, view.queries, view.query_stride, args.num_queries, view.dim, carver, layout);
    score.views[v].keys = plan_operand(args, view.keys, view.key_stride, N, view.dim, carver, layout);
  }
  const int64_t pitch = std::max<int64_t>(round_up(N, 4), 4);
  const bool listed = plan_lists(N, limits, layout), sorted = std::min(k, N) > SORTED_IN_SHARED;
  select.sort_size = 0;
  if (sorted)
    for (select.sort_size = SORTED_IN_SHARED; select.sort_size < std::min(k, N);) select.sort_size *= 2;

  layout.tiny =
      !gathered && limits.clusters_of_16 && args.num_queries <= TINY_QUERIES && N <= TINY_KEYS && !listed;
  const int64_t ring_a_query = 4 * pitch * select.num_views;
  const int64_t list_a_query = listed ? int64_t{4} * select.longest * (select.rows + 1) : 0;
  plan_chunk(args.num_queries, ring_a_query, ring_a_query + list_a_query + 8 * select.sort_size,
             limits.cache_bytes, layout);

  score.num_views = select.num_views;
  score.num_keys = select.num_keys = static_cast<uint32_t>(N);
  score.key_ids = args.key_ids;
  score.exclude_stride = args.exclude_stride;
  score.pitch = select.pitch = pitch;
  score.view_stride = select.view_stride = layout.chunk * pitch;
  score.out = carver.take<float>(select.num_views * layout.chunk * pitch);
  select.scores = score.out;
  if (listed) select.lists = carver.take<uint32_t>(layout.chunk * (select.rows + 1) * select.longest);
  if (sorted) select.sorts = carver.take<uint64_t>(layout.chunk * select.sort_size);
  select.k = k;
  layout.bytes = carver.used;
  return nullptr;
}

// What changes from sweep to sweep.
void aim(const CascadeArgs& args, int64_t first, int64_t count, Layout& layout) {
  layout.score.first_query = first;
  layout.score.num_queries = layout.select.num_queries = static_cast<uint32_t>(count);
  layout.score.query_ids = args.query_ids ? args.query_ids + first : nullptr;
  layout.score.exclude = args.exclude ? args.exclude + first * args.exclude_stride : nullptr;
  layout.select.indices = args.indices + first * layout.select.k;
  layout.select.best = args.scores + first * layout.select.k;
}

template <bool BFLOAT, int PLANES, int BM>
const char* launch_score(const ScoreArgs& args, bool follows, void* stream) {
  Grid grid;
  grid.x = (args.num_queries + BM - 1) / BM * ((args.num_keys + TILE_KEYS - 1) / TILE_KEYS);
  grid.y = static_cast<uint32_t>(args.num_views);
  grid.threads = SCORE_THREADS;
  grid.shared = SCORE_SHARED_BYTES<BM, PLANES>;
  grid.follows = follows;
  return launch(score_kernel<BFLOAT, PLANES, BM>, grid, args, stream);
}

// Queries of a score tile. 128 reuse each key twice as often from shared memory as 64, and are taken where no
// tile is left half empty; the order of a sum is the same in all.
int score_tile_queries(int64_t chunk) {
  if (tuning().score_queries > 0) return tuning().score_queries;
  if (chunk <= 16) return 16;
  const bool half_empty = chunk < 256 && chunk % 128 > 0 && chunk % 128 <= 64;
  return half_empty ? 64 : 128;
}

template <bool BFLOAT, int PLANES>
const char* run(const CascadeArgs& args, Layout& layout, void* stream) {
  if (layout.tiny) {
    aim(args, 0, args.num_queries, layout);
    Grid grid;
    grid.x = grid.cluster = TINY_BLOCKS;
    grid.threads = SCORE_THREADS;
    grid.shared = std::max<int64_t>(SCORE_SHARED_BYTES<16, PLANES>,
                                    select_shared_bytes(layout.select.rows, layout.select.shared_entries));
    if (cluster_fits(tiny_kernel<BFLOAT, PLANES>, grid))
      return launch(tiny_kernel<BFLOAT, PLANES>, grid,
                    TinyArgs{layout.prepare, layout.prepares, layout.score, layout.select}, stream);
  }
  if (const char* error = launch_prepare(layout.prepare, layout.prepares, stream)) return error;
  for (int64_t first = 0; first < args.num_queries; first += layout.chunk) {
    const int64_t count = std::min(layout.chunk, args.num_queries - first);
    aim(args, first, count, layout);
    const char* error = nullptr;
    const int tile = score_tile_queries(layout.chunk);
    const bool follows = layout.prepares > 0 || first > 0;
    if (args.num_keys > 0)
      error = tile == 16   ? launch_score<BFLOAT, PLANES, 16>(layout.score, follows, stream)
              : tile == 64 ? launch_score<BFLOAT, PLANES, 64>(layout.score, follows, stream)
                           : launch_score<BFLOAT, PLANES, 128>(layout.score, follows, stream);
    if (error) return error;
    Grid grid;
    grid.x = static_cast<uint32_t>(count);
    grid.threads = layout.threads;
    grid.shared = select_shared_bytes(layout.select.rows, layout.select.shared_entries);
    grid.follows = args.num_keys > 0;
    error = launch(select_kernel, grid, layout.select, stream);
    if (error) return error;
  }
  return nullptr;
}

// A call over listed candidates, planned as if they were all the keys there are.
const char* plan_listed(const RerankArgs& args, void* workspace, Layout& layout, GatherArgs& gather) {
  const CascadeArgs& cascade = args.cascade;
  CascadeArgs listed = cascade;
  listed.num_keys = args.num_candidates;
  if (const char* reason = plan(listed, limits_of_current_device(), workspace, layout, true)) return reason;
  SelectArgs unused{};
  int used[MAX_VIEWS];
  plan_rows(listed, unused, used);
  for (int v = 0; v < layout.select.num_views; ++v) {
    const View& view = cascade.views[used[v]];
    gather.views[v] = {view.queries, view.keys, view.query_stride, view.key_stride, view.dim};
  }
  gather.listed = args.candidates;
  gather.listed_stride = args.candidates_stride;
  gather.count = static_cast<uint32_t>(args.num_candidates);
  gather.out = layout.score.out;
  gather.view_stride = layout.score.view_stride;
  gather.pitch = layout.score.pitch;
  gather.query_ids = cascade.query_ids;
  gather.key_ids = cascade.key_ids;
  gather.exclude = cascade.exclude;
  gather.exclude_stride = cascade.exclude_stride;
  return nullptr;
}

template <int TYPE>
const char* run_listed(const RerankArgs& args, Layout& layout, GatherArgs& gather, void* stream) {
  for (int64_t first = 0; first < args.cascade.num_queries; first += layout.chunk) {
    const int64_t count = std::min(layout.chunk, args.cascade.num_queries - first);
    aim(args.cascade, first, count, layout);
    gather.first_query = first;
    const char* error =
        gather.count ? launch_gather<TYPE>(gather, count, layout.select.num_views, stream) : nullptr;
    if (error) return error;
    Grid grid;
    grid.x = static_cast<uint32_t>(count);
    grid.threads = layout.threads;
    grid.shared = select_shared_bytes(layout.select.rows, layout.select.shared_entries);
    error = launch(select_kernel, grid, layout.select, stream);
    if (error) return error;
  }
  return nullptr;
}

}  // namespace

const char* cascade_rerank_cuda_workspace(const RerankArgs& args, int64_t* bytes) {
  Layout layout;
  GatherArgs gather{};
  const char* reason = plan_listed(args, nullptr, layout, gather);
  *bytes = layout.bytes;
  return reason;
}

const char* cascade_rerank_cuda(const RerankArgs& args, void* workspace, int64_t bytes, void* stream) {
  if (args.cascade.num_queries == 0) return nullptr;
  Layout layout;
  GatherArgs gather{};
  if (const char* reason = plan_listed(args, workspace, layout, gather)) return reason;
  if (layout.bytes > bytes) return "the workspace is smaller than cascade_rerank_cuda_workspace asked for";
  switch (args.cascade.dtype) {
    case DType::float32:
      return run_listed<0>(args, layout, gather, stream);
    case DType::bfloat16:
      return run_listed<1>(args, layout, gather, stream);
    case DType::float16:
      return run_listed<2>(args, layout, gather, stream);
  }
  return "an unknown dtype";
}

const char* cascade_topk_cuda_plan(const CascadeArgs& args, CudaPlan* to) {
  Layout layout;
  const char* reason = plan(args, limits_of_current_device(), nullptr, layout);
  *to = {layout.tiny ? "tiny" : layout.in_cache ? "ring" : "huge", layout.chunk, layout.bytes};
  return reason;
}

const char* cascade_topk_cuda(const CascadeArgs& args, void* workspace, int64_t bytes, void* stream) {
  if (args.num_queries == 0) return nullptr;
  Layout layout;
  if (const char* reason = plan(args, limits_of_current_device(), workspace, layout)) return reason;
  if (layout.bytes > bytes) return "the workspace is smaller than cascade_topk_cuda_plan asked for";
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
