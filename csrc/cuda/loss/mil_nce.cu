// cpr::mil_nce on CUDA. One sweep over the keys, split into parts, leaves each query's running logsumexp and
// its attention output; a second kernel puts the parts together in order, adds the own pair and the
// positives, and has the loss and the query's gradient. The keys' gradient, where wanted, is one more sweep
// with rows and columns swapped. Every sum has a fixed order: results are the same on every run. Nothing of
// size B x N exists.
#include <algorithm>

#include "../../mil_nce.h"
#include "../device/host.h"
#include "../prepare.h"
#include "attend_wide.h"
#include "launch_attend_wgmma.h"
#include "layout.h"
#include "query_stats.h"

namespace cpr {
namespace {

constexpr int FINISH_DIM = 256;  // features that a block of finish_kernel gathers; more are cut over blocks
constexpr int FINISH_THREADS = 256;
constexpr int FINISH_WARPS = FINISH_THREADS / 32;
constexpr float LOWEST = -3.402823466e38f, HIGHEST = 3.402823466e38f;

struct FinishArgs {
  LossArgs loss;
  LossOut out;
  int parts;
  const float *top, *mass, *attended;  // of the sweep
  RankRoom ranks;
};

struct FinishMemory {
  float part_factor[BLOCKS_WANTED + 8];
  float own, top, mass;
  float positive_top[FINISH_WARPS], positive_mass[FINISH_WARPS];
  float positive_sum[FINISH_WARPS][FINISH_DIM];
};

// A warp's running sums over positives: highest score, mass, and lane's share of the summed features, those
// from `first` on.
struct Positives {
  int64_t first;
  float top = LOWEST, mass = 0.0f;
  float sum[FINISH_DIM / 32] = {};

  CPR_DEVICE explicit Positives(int64_t first_feature) : first(first_feature) {}

  CPR_DEVICE void add(const LossArgs& args, int64_t query, int64_t key, int lane) {
    float features[FINISH_DIM / 32], score = 0.0f;
    for (int64_t d = lane; d < args.dim; d += 32)
      score += element(args.keys, args.dtype, key * args.key_stride + d) *
               element(args.query, args.dtype, query * args.query_stride + d);
#pragma unroll
    for (int i = 0; i < FINISH_DIM / 32; ++i) {
      const int64_t d = first + lane + 32 * i;
      features[i] = d < args.dim ? element(args.keys, args.dtype, key * args.key_stride + d) : 0.0f;
    }
#pragma unroll
    for (int step = 16; step; step >>= 1) score += shuffle_xor(score, step);
    const float scale = 1.0f / args.temperature, highest = fmaxf(top, score);
    const float shrink = expf((top - highest) * scale), weight = expf((score - highest) * scale);
    mass = mass * shrink + weight;
#pragma unroll
    for (int i = 0; i < FINISH_DIM / 32; ++i) sum[i] = sum[i] * shrink + weight * features[i];
    top = highest;
  }
};

// Positives of one query: warps take the listed ones in turn, then 32 keys at a time where ids decide.
CPR_DEVICE void add_positives(const LossArgs& args, int64_t query, int warp, int lane, Positives& to) {
  const int64_t* listed = args.positives + query * args.num_positives;
  const bool by_id = args.query_ids && args.key_ids && args.siblings == 1;
  const int64_t own_id = args.query_ids ? args.query_ids[query] : -1;
  for (int64_t p = warp; p < args.num_positives; p += FINISH_WARPS) {
    const int64_t key = listed[p];
    bool counts = key >= 0 && key < args.num_keys;
    if (counts && args.key_ids) {
      const int64_t id = args.key_ids[key];
      counts = id >= 0 && !(args.query_ids && id == own_id &&
                            args.siblings != 0);  // siblings are added or left out below
    }
    bool repeated = false;
    for (int64_t before = lane; before < p; before += 32) repeated = repeated || listed[before] == key;
    if (counts && ballot(repeated) == 0) to.add(args, query, key, lane);  // the same for the whole warp
  }
  if (!by_id || own_id < 0) return;
  const auto is_sibling = [&](int64_t key) { return key < args.num_keys && args.key_ids[key] == own_id; };
  constexpr int AHEAD = 8;  // loads in flight
  for (int64_t first = warp * int64_t{32}; first < args.num_keys; first += AHEAD * FINISH_THREADS) {
    bool any = false;
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) any |= is_sibling(first + i * FINISH_THREADS + lane);
    if (ballot(any) == 0) continue;
#pragma unroll 1
    for (int64_t at = first; at < first + AHEAD * FINISH_THREADS; at += FINISH_THREADS)
      for (uint32_t siblings = ballot(is_sibling(at + lane)); siblings; siblings &= siblings - 1)
        to.add(args, query, at + count_bits((siblings & (0u - siblings)) - 1u), lane);
  }
}

struct OwnArgs {
  LossArgs loss;
  float* own;
};

// A warp a query.
CPR_KERNEL(FINISH_THREADS, 1) own_kernel(OwnArgs args) {
  const int64_t query = static_cast<int64_t>(block_index()) * FINISH_WARPS + (thread_index() >> 5);
  if (query >= args.loss.num_queries) return;
  const float own = own_score(args.loss, query, thread_index() & 31);
  if ((thread_index() & 31) == 0) args.own[query] = own;
}

// Grid: x over queries, y over features, 256 a block; each block forms the query's own numbers, and the first
// writes them.
CPR_KERNEL(FINISH_THREADS, 1) finish_kernel(FinishArgs args) {
  CPR_SHARED_MEMORY(shared);
  await_previous_kernel();
  FinishMemory& memory = *reinterpret_cast<FinishMemory*>(shared);
  const LossArgs& loss = args.loss;
  const int64_t query = block_index(), rows = loss.num_queries;
  const int thread = thread_index(), lane = thread & 31, warp = thread >> 5;
  const float scale = 1.0f / loss.temperature;

  const int64_t first_feature = static_cast<int64_t>(block_index_y()) * FINISH_DIM;
  Positives positives(first_feature);
  add_positives(loss, query, warp, lane, positives);
  if (lane == 0) {
    memory.positive_top[warp] = positives.top;
    memory.positive_mass[warp] = positives.mass;
  }
#pragma unroll
  for (int i = 0; i < FINISH_DIM / 32; ++i) memory.positive_sum[warp][lane + 32 * i] = positives.sum[i];
  if (warp == 0) {
    const float own = own_score(loss, query, lane);  // NaN: all that the query gets is
    float top = own;
    for (int p = lane; p < args.parts; p += 32) top = fmaxf(top, args.top[p * rows + query]);
    for (int step = 16; step; step >>= 1) top = fmaxf(top, shuffle_xor(top, step));
    for (int p = lane; p < args.parts; p += 32)
      memory.part_factor[p] = expf((args.top[p * rows + query] - top) * scale);
    sync_warp();
    if (lane == 0) {
      float mass = expf((own - top) * scale);
      for (int p = 0; p < args.parts; ++p) mass += memory.part_factor[p] * args.mass[p * rows + query];
      memory.own = own;
      memory.top = top;
      memory.mass = mass;
    }
  }
  sync_block();

  const float own = memory.own, top = memory.top, mass = memory.mass;
  float others = 0.0f, positive_top = LOWEST;
  for (int w = 0; w < FINISH_WARPS; ++w) {
    others += memory.positive_mass[w];
    positive_top = fmaxf(positive_top, memory.positive_top[w]);
  }
  const bool own_counts = !loss.use_own || loss.use_own[query] != 0 || others == 0.0f;
  if (own_counts) positive_top = fmaxf(positive_top, own);
  float positive_mass = own_counts ? expf((own - positive_top) * scale) : 0.0f;
  for (int w = 0; w < FINISH_WARPS; ++w)
    positive_mass += expf((memory.positive_top[w] - positive_top) * scale) * memory.positive_mass[w];
  const float own_of_all = expf((own - top) * scale) / mass;
  const float own_of_positive = own_counts ? expf((own - positive_top) * scale) / positive_mass : 0.0f;
  if (thread == 0 && first_feature == 0) {
    args.out.loss[query] = fminf((top - positive_top) * scale, HIGHEST) +
                           (logf(mass) - logf(positive_mass));  // NaN: the mass is
    args.out.lse_all[query] = top * scale + logf(mass);
    args.out.lse_positive[query] = positive_top * scale + logf(positive_mass) + mass * 0.0f;
    args.out.own_weight[query] = own_of_all - own_of_positive;
  }
  if (args.out.stats && warp == 0 && first_feature == 0) {
    const QueryStats found(loss, args.ranks, args.parts, query, own, own_counts);
    if (lane == 0) {
      const bool spoilt = mass != mass;
      args.out.stats[query * 3] = spoilt ? -1 : int64_t{found.above};
      args.out.stats[query * 3 + 1] = spoilt ? -1 : int64_t{found.best_is_positive};
      args.out.stats[query * 3 + 2] = spoilt ? -1 : int64_t{found.positives};
    }
  }
  if (!args.out.grad_query) return;
  const int64_t d = first_feature + thread;
  if (d < loss.dim) {
    float of_all = 0.0f, of_positive = 0.0f;
    for (int p = 0; p < args.parts; ++p)
      of_all += memory.part_factor[p] * args.attended[(p * rows + query) * loss.dim + d];
    for (int w = 0; w < FINISH_WARPS; ++w)
      of_positive += expf((memory.positive_top[w] - positive_top) * scale) * memory.positive_sum[w][thread];
    const float own_feature = element(loss.positive, loss.dtype, query * loss.positive_stride + d);
    args.out.grad_query[query * loss.dim + d] =
        (of_all / mass - of_positive / positive_mass + (own_of_all - own_of_positive) * own_feature) * scale;
  }
}

static_assert(FINISH_DIM == FINISH_THREADS, "a thread a feature");

template <int MODE>
CPR_KERNEL(ATTEND_THREADS, 1)
attend_wide_kernel(AttendArgs args) {
  CPR_SHARED_MEMORY(shared);
  await_previous_kernel();
  let_next_kernel_start();
  attend_wide<MODE>(args, shared);
}

template <int DEPTHS, int MODE>
CPR_KERNEL(ATTEND_THREADS, 1)
attend_kernel(AttendArgs args) {
  CPR_SHARED_MEMORY(shared);
  await_previous_kernel();
  let_next_kernel_start();
  attend<DEPTHS, MODE>(args, shared);
}

PrepareArgs prepare_args(const LossArgs& args, const void* rows, int64_t stride, int64_t count, int depths,
                         const LossPlanes& to) {
  return {rows, stride,    count,       static_cast<int>(args.dim), depths, args.dtype, true,
          1.0f, to.planes, to.exponents};
}

const char* launch_both(const LossArgs& args, const LossLayout& layout, void* stream) {
  PrepareList list{};
  list.of[0] =
      prepare_args(args, args.query, args.query_stride, args.num_queries, layout.depths, layout.queries);
  list.of[1] = prepare_args(args, args.keys, args.key_stride, args.num_keys, layout.depths, layout.keys);
  for (int i = 0; i < 2 && layout.wgmma; ++i) list.of[i].packed = true, list.of[i].fill = ATTEND_WGMMA_KEYS;
  return launch_prepare(list, 2, stream);
}

Operand operand(const LossPlanes& planes, int64_t count, int depths) {
  return {planes.planes, depths, count * depths, planes.exponents, nullptr, 0};
}

template <int MODE>
const char* launch_attend(AttendArgs args, const LossLayout& layout, int64_t parts, void* stream) {
  Grid grid;
  grid.x = (args.num_rows + ATTEND_ROWS - 1) / ATTEND_ROWS;
  grid.y = static_cast<uint32_t>(parts);
  args.chunks = layout.chunks();
  grid.z = MODE == ATTEND_GRADIENT || args.attended ? static_cast<uint32_t>(args.chunks) : 1;
  grid.threads = ATTEND_THREADS;
  grid.follows = true;
  if (layout.wide)
    return grid.shared = WIDE_SHARED_BYTES, launch<attend_wide_kernel<MODE>>(grid, args, stream);
  if (layout.depths == 64)
    return grid.shared = ATTEND_SHARED_BYTES<64>, launch<attend_kernel<64, MODE>>(grid, args, stream);
  if (layout.depths == 128)
    return grid.shared = ATTEND_SHARED_BYTES<128>, launch<attend_kernel<128, MODE>>(grid, args, stream);
  return grid.shared = ATTEND_SHARED_BYTES<256>, launch<attend_kernel<256, MODE>>(grid, args, stream);
}

AttendArgs attend_args(const LossArgs& args) {
  AttendArgs attend{};
  attend.siblings = args.siblings;
  attend.scale = 1.0f / args.temperature;
  attend.dim = static_cast<int>(args.dim);
  return attend;
}

}  // namespace

const char* mil_nce_cuda_workspace(const LossArgs& args, bool sweep, bool gradient, bool stats,
                                   int64_t* bytes) {
  LossLayout layout;
  const char* reason = plan_loss(args, {sweep, gradient, stats}, limits_of_current_device(), nullptr, layout);
  *bytes = layout.bytes;
  return reason;
}

const char* mil_nce_sweep_cuda(const LossArgs& args, const LossOut& out, void* workspace, int64_t bytes,
                               void* stream) {
  if (args.num_queries == 0) return nullptr;
  LossLayout layout;
  const LossWanted wanted{true, out.grad_query != nullptr, out.stats != nullptr};
  if (const char* reason = plan_loss(args, wanted, limits_of_current_device(), workspace, layout))
    return reason;
  if (layout.bytes > bytes) return "the workspace is smaller than mil_nce_cuda_workspace says";
  if (args.num_keys > 0) {
    if (const char* error = launch_both(args, layout, stream)) return error;
    AttendArgs attend = attend_args(args);
    attend.rows = operand(layout.queries, args.num_queries, layout.depths);
    attend.columns = operand(layout.keys, args.num_keys, layout.depths);
    attend.num_rows = static_cast<uint32_t>(args.num_queries);
    attend.num_columns = static_cast<uint32_t>(args.num_keys);
    attend.row_ids = args.query_ids;
    attend.column_ids = args.key_ids;
    attend.part_columns = static_cast<uint32_t>(layout.part_columns);
    attend.top = layout.top;
    attend.mass = layout.mass;
    attend.attended = layout.attended;
    attend.ranks = layout.ranks;
    if (wanted.stats) {
      Grid grid;
      grid.x = static_cast<uint32_t>((args.num_queries + FINISH_WARPS - 1) / FINISH_WARPS);
      grid.threads = FINISH_THREADS;
      if (const char* error = launch<own_kernel>(grid, OwnArgs{args, layout.ranks.own}, stream)) return error;
    }
    const char* const error = layout.wgmma ? launch_attend_wgmma(args.dtype, attend, layout.parts, stream)
                              : wanted.stats
                                  ? launch_attend<ATTEND_RANKS>(attend, layout, layout.parts, stream)
                                  : launch_attend<ATTEND_SUMS>(attend, layout, layout.parts, stream);
    if (error) return error;
  }
  Grid grid;
  grid.x = static_cast<uint32_t>(args.num_queries);
  grid.threads = FINISH_THREADS;
  const int64_t pieces = std::max<int64_t>(1, rounded_up(args.dim, FINISH_DIM) / FINISH_DIM);
  grid.y = out.grad_query ? static_cast<uint32_t>(pieces) : 1;
  grid.shared = sizeof(FinishMemory);
  grid.follows = args.num_keys > 0;
  return launch<finish_kernel>(grid,
                               FinishArgs{args, out, static_cast<int>(layout.parts), layout.top, layout.mass,
                                          layout.attended, layout.ranks},
                               stream);
}

const char* mil_nce_keys_gradient_cuda(const LossArgs& args, const float* grad_loss, const float* lse_all,
                                       const float* lse_positive, float* grad_keys, void* workspace,
                                       int64_t bytes, void* stream) {
  if (args.num_keys == 0) return nullptr;
  if (args.num_queries == 0) return fill_zero(grad_keys, args.num_keys * args.dim * 4, stream);
  LossLayout layout;
  if (const char* reason =
          plan_loss(args, {false, true, false}, limits_of_current_device(), workspace, layout))
    return reason;
  if (layout.bytes > bytes) return "the workspace is smaller than mil_nce_cuda_workspace says";
  if (const char* error = launch_both(args, layout, stream)) return error;
  AttendArgs attend = attend_args(args);
  attend.rows = operand(layout.keys, args.num_keys, layout.depths);
  attend.columns = operand(layout.queries, args.num_queries, layout.depths);
  attend.num_rows = static_cast<uint32_t>(args.num_keys);
  attend.num_columns = static_cast<uint32_t>(args.num_queries);
  attend.row_ids = args.key_ids;
  attend.column_ids = args.query_ids;
  attend.empty_rows = true;
  attend.part_columns = static_cast<uint32_t>(rounded_up(args.num_queries, ATTEND_COLUMNS));
  attend.grad_loss = grad_loss;
  attend.lse_all = lse_all;
  attend.lse_positive = lse_positive;
  attend.positives = args.positives;
  attend.num_positives = args.num_positives;
  attend.grad = grad_keys;
  return launch_attend<ATTEND_GRADIENT>(attend, layout, 1, stream);
}

}  // namespace cpr
