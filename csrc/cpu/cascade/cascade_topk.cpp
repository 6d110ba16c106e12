// cpr::cascade_topk on CPU, compiled once per instruction set. No B x N buffer: keys stream by in panels,
// their scores stay in cache, and only entries that may still be selected are kept.
#include "../../cascade_topk.h"

#include "../kernels.h"
#include "../workspace.h"
#include "sweep.h"

namespace cpr {
namespace CPR_ISA_NAMESPACE {
namespace {

// How far off a query's coarse scores may be: `m.refine.error`. False: too far, or there is no bound.
template <int NR>
bool bound_errors(const Cascade<NR>& cascade, int64_t in_round, const ThreadMemory& m) {
  const CascadePlan& plan = cascade.plan;
  const int64_t slot = in_round / cascade.queries_of_super();
  const Grid* const grids = cascade.grids_of(in_round);
  float reach[MAX_CODED_ROWS];
  if (!cascade.shared.coarse[slot]) return false;
  if (!cascade.errors_of(slot, in_round, m.refine.error, grids ? reach : nullptr)) return false;
  for (int r = 0; grids && r < plan.rows; ++r) {
    m.refine.error[r] += OFF_GRID * grids[r].step;
    if (!(reach[r] * grids[r].scale < MOST_REACHED)) return false;
  }
  return true;
}

// One query's result, or a mark that its brackets missed.
template <int NR>
void resolve(const Cascade<NR>& cascade, int64_t q, int64_t in_round, const Collected* parts,
                const Bracket* brackets, Workspace& w, ThreadMemory& m) {
  const CascadeArgs& args = cascade.args;
  const CascadePlan& plan = cascade.plan;
  const int num_parts = cascade.shape.parts;
  if (plan.coarse) {
    if (!bound_errors(cascade, in_round, m)) {
      plan.missed[q] = REFUSED;
      return;
    }
    widen_query(args, q, m.query);
  }
  bool settled = true;
  if (plan.coded) {
    const CodeQuery query = {plan, num_parts, cascade.grids_of(in_round), m.refine, w, m.codes};
    settled = query.settle(parts, brackets) && query.finish(args, q);
  } else {
    const Refine* const refine = plan.coarse ? &m.refine : nullptr;
    if (collects_all(args, plan)) {
      w.entries = w.merged;
      cascade.list_all(in_round, w.entries);
    } else {
      settled = settle_levels(plan, parts, num_parts, brackets, refine, w);
    }
    if (settled) finish(args, plan, plan.levels, refine, w, q);
  }
  if (!settled) plan.missed[q] = MISSED;
}

// The grids that a query's scores are collected on, and its brackets and errors on them. False: they do not
// serve.
inline bool set_grids(const CascadePlan& plan, const float* reach, Bracket* brackets, Grid* grids,
                      float* error) {
  for (int r = 0; r < plan.rows; ++r) {
    float least = __builtin_inff();
    for (int l = 0; l < plan.levels; ++l)
      if (plan.row_of_stage[l] == r && brackets[l].possible.score < least) least = brackets[l].possible.score;
    grids[r] = Grid::over(least < reach[r] ? least : -reach[r], reach[r]);
    error[r] += OFF_GRID * grids[r].step;
    if (!grids[r].serves()) return false;
  }
  for (int l = 0; l < plan.levels; ++l) grids[plan.row_of_stage[l]].snap(brackets[l]);
  return true;
}

// Brackets of one query from what it has collected. Where the sample's are too narrow for coarse scores,
// those of its super are refused.
template <int NR>
void narrow_query(const Cascade<NR>& cascade, const Pass& pass, int64_t in_round, const Collected* parts,
                  Bracket* brackets, Workspace& w, const ThreadMemory& m) {
  const CascadePlan& plan = cascade.plan;
  const int64_t slot = in_round / cascade.queries_of_super();
  if (!plan.coarse) return narrow(plan, pass, parts, cascade.shape.parts, nullptr, brackets, w);
  uint8_t* const coarse = cascade.shared.coarse + slot;
  if (!__atomic_load_n(coarse, __ATOMIC_RELAXED)) return;
  float* const error = m.refine.error;
  float reach[MAX_CODED_ROWS];
  Grid* const grids = pass.starts_over ? cascade.grids_of(in_round) : nullptr;
  if (pass.starts_over && in_round % cascade.queries_of_super() == 0) cascade.set_reference(slot);
  bool fits = cascade.errors_of(slot, in_round, error, grids ? reach : nullptr);
  narrow(plan, pass, parts, cascade.shape.parts, pass.starts_over ? nullptr : error, brackets, w);
  if (grids) {
    fits = fits && set_grids(plan, reach, brackets, grids, error);
    if (fits) cascade.use_grids(in_round);
  }
  for (int l = 0; l < plan.levels; ++l) fits = fits && !too_narrow(brackets[l], error[plan.row_of_stage[l]]);
  if (pass.starts_over && !fits) __atomic_store_n(coarse, 0, __ATOMIC_RELAXED);
}

template <int NR>
int run(const CascadeArgs& args, const CascadePlan& plan, const Shape& shape) {
  const Dims dims(args);
  Arena arena{nullptr, 0};
  SharedMemory::take(arena, args, plan, shape, dims);
  const int64_t shared_bytes = arena.used;
  ThreadMemory::take(arena, args, plan, shape, dims);
  const int64_t thread_bytes = arena.used - shared_bytes + 64 * shape.parts;
  char* memory = take_workspace(shared_bytes + round_up(thread_bytes, 64) * shape.threads);
  if (!memory) return -1;
  arena = {memory, 0};
  const SharedMemory shared = SharedMemory::take(arena, args, plan, shape, dims);
  const Cascade<NR> cascade{args, plan, shape, shared, dims};

#pragma omp parallel num_threads(shape.threads) if (shape.threads > 1)
  {
    const FloatEnvironment exact;
    Collected* parts;
    ThreadMemory m;
#pragma omp critical(cpr_arena)
    {
      m = ThreadMemory::take(arena, args, plan, shape, dims);
      parts = arena.take<Collected>(shape.parts);
    }
    Workspace w = Workspace::at(m.workspace, plan, shape.parts);
    const int64_t queries = cascade.queries_of_super();
    for (int64_t first = 0; first < shape.supers; first += shape.supers_per_round) {
      const int64_t supers =
          shape.supers - first < shape.supers_per_round ? shape.supers - first : shape.supers_per_round;
#pragma omp for schedule(dynamic)
      for (int64_t b = 0; b < supers * shape.blocks_per_super; ++b) {
        const int64_t slot = b / shape.blocks_per_super;
        cascade.start(first + slot, slot, b % shape.blocks_per_super, m);
      }
      for (int x = 0; x < plan.passes; ++x) {
        const Pass& pass = plan.pass[x];
#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < supers * shape.parts; ++t)
          cascade.sweep_rows(pass, first + t / shape.parts, t / shape.parts,
                             static_cast<int>(t % shape.parts), m);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < supers * queries; ++i) {
          const int64_t q = first * queries + i;
          if (q >= args.num_queries) continue;
          for (int p = 0; p < shape.parts; ++p) parts[p] = cascade.collected_of(i, p);
          Bracket* brackets = shared.brackets + i * plan.levels;
          if (pass.narrows)
            narrow_query(cascade, pass, i, parts, brackets, w, m);
          else
            resolve(cascade, q, i, parts, brackets, w, m);
        }
      }
    }
  }
  give_back_workspace(memory);
  return 0;
}

int cascade(const CascadeArgs& args, const CascadePlan& whole) {
  CascadePlan plan = whole;
  const Shape shape = shape_of(args, plan);
  return shape.vectors == 1 ? run<1>(args, plan, shape) : run<2>(args, plan, shape);
}

CpuPlan told(const CascadeArgs& args, const CascadePlan& whole) {
  CascadePlan plan = whole;
  const Shape shape = shape_of(args, plan);
  return {W,
          shape.threads,
          shape.blocks_per_super * shape.width,
          shape.supers,
          shape.parts,
          plan.passes,
          plan.levels,
          plan.coarse};
}

}  // namespace

extern const CpuKernels kernels;
const CpuKernels kernels = {cascade, told};

}  // namespace CPR_ISA_NAMESPACE
}  // namespace cpr
