// cpr::cascade_topk on CPU, compiled once per instruction set. No B x N buffer: keys stream by in panels,
// their scores stay in cache, and only entries that may still be selected are kept.
#include "../../cascade_topk.h"

#include "../kernels.h"
#include "../workspace.h"
#include "sweep.h"

namespace cpr {
namespace CPR_ISA_NAMESPACE {
namespace {

// How far off a query's int16 scores may be: `m.refine.error`. False: too far, or there is no bound.
template <int NR>
bool bound_errors(const Cascade<NR>& cascade, int64_t in_wave, const ThreadMemory& m) {
  const CascadePlan& plan = cascade.plan;
  const int64_t slot = in_wave / cascade.queries_of_group();
  const Quantizer* const quantizers = cascade.quantizers_of(in_wave);
  float reach[MAX_CODE_ROWS];
  if (!cascade.shared.uses_int16[slot]) return false;
  if (!cascade.errors_of(slot, in_wave, m.refine.error, quantizers ? reach : nullptr)) return false;
  for (int r = 0; quantizers && r < plan.rows; ++r) {
    m.refine.error[r] += OFF_STEPS * quantizers[r].step;
    if (!(reach[r] * quantizers[r].scale < MOST_REACHED)) return false;
  }
  return true;
}

// One query's result, or a mark that its brackets missed.
template <int NR>
void select_query(const Cascade<NR>& cascade, int64_t q, int64_t in_wave, const Collected* parts,
                  const Bracket* brackets, Workspace& w, ThreadMemory& m) {
  const CascadeArgs& args = cascade.args;
  const CascadePlan& plan = cascade.plan;
  const int num_parts = cascade.shape.parts;
  if (plan.int16_scores) {
    if (!bound_errors(cascade, in_wave, m)) {
      plan.missed[q] = REFUSED;
      return;
    }
    widen_query(args, q, m.query);
  }
  bool decided = true;
  if (plan.int16_lists) {
    const CodeQuery query = {plan, num_parts, cascade.quantizers_of(in_wave), m.refine, w, m.codes};
    decided = query.decide_levels(parts, brackets) && query.finish(args, q);
  } else {
    const Refine* const refine = plan.int16_scores ? &m.refine : nullptr;
    if (collects_all(args, plan)) {
      w.entries = w.merged;
      cascade.list_all(in_wave, w.entries);
    } else {
      decided = decide_levels(plan, parts, num_parts, brackets, refine, w);
    }
    if (decided) finish(args, plan, plan.levels, refine, w, q);
  }
  if (!decided) plan.missed[q] = MISSED;
}

// The quantizers that a query's scores are collected on, and its brackets and errors on them. False: they do
// not serve.
inline bool set_quantizers(const CascadePlan& plan, const float* reach, Bracket* brackets,
                           Quantizer* quantizers, float* error) {
  for (int r = 0; r < plan.rows; ++r) {
    float least = __builtin_inff();
    for (int l = 0; l < plan.levels; ++l)
      if (plan.row_of_stage[l] == r && brackets[l].possible.score < least) least = brackets[l].possible.score;
    quantizers[r] = Quantizer::over(least < reach[r] ? least : -reach[r], reach[r]);
    error[r] += OFF_STEPS * quantizers[r].step;
    if (!quantizers[r].is_usable()) return false;
  }
  for (int l = 0; l < plan.levels; ++l) quantizers[plan.row_of_stage[l]].round_outward(brackets[l]);
  return true;
}

// Brackets of one query from what it has collected. Where the sample's are too narrow for int16 scores,
// those of its group are refused.
template <int NR>
void narrow_query(const Cascade<NR>& cascade, const Pass& pass, int64_t in_wave, const Collected* parts,
                  Bracket* brackets, Workspace& w, const ThreadMemory& m) {
  const CascadePlan& plan = cascade.plan;
  const int64_t slot = in_wave / cascade.queries_of_group();
  if (!plan.int16_scores) return narrow(plan, pass, parts, cascade.shape.parts, nullptr, brackets, w);
  uint8_t* const uses_int16 = cascade.shared.uses_int16 + slot;
  if (!__atomic_load_n(uses_int16, __ATOMIC_RELAXED)) return;
  float* const error = m.refine.error;
  float reach[MAX_CODE_ROWS];
  Quantizer* const quantizers = pass.starts_over ? cascade.quantizers_of(in_wave) : nullptr;
  if (pass.starts_over && in_wave % cascade.queries_of_group() == 0) cascade.set_reference(slot);
  bool fits = cascade.errors_of(slot, in_wave, error, quantizers ? reach : nullptr);
  narrow(plan, pass, parts, cascade.shape.parts, pass.starts_over ? nullptr : error, brackets, w);
  if (quantizers) {
    fits = fits && set_quantizers(plan, reach, brackets, quantizers, error);
    if (fits) cascade.use_quantizers(in_wave);
  }
  for (int l = 0; l < plan.levels; ++l) fits = fits && !too_narrow(brackets[l], error[plan.row_of_stage[l]]);
  if (pass.starts_over && !fits) __atomic_store_n(uses_int16, 0, __ATOMIC_RELAXED);
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
    const int64_t queries = cascade.queries_of_group();
    for (int64_t first = 0; first < shape.groups; first += shape.groups_per_wave) {
      const int64_t groups =
          shape.groups - first < shape.groups_per_wave ? shape.groups - first : shape.groups_per_wave;
#pragma omp for schedule(dynamic)
      for (int64_t b = 0; b < groups * shape.blocks_per_group; ++b) {
        const int64_t slot = b / shape.blocks_per_group;
        cascade.start(first + slot, slot, b % shape.blocks_per_group, m);
      }
      for (int x = 0; x < plan.passes; ++x) {
        const Pass& pass = plan.pass[x];
#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < groups * shape.parts; ++t)
          cascade.sweep_rows(pass, first + t / shape.parts, t / shape.parts,
                             static_cast<int>(t % shape.parts), m);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < groups * queries; ++i) {
          const int64_t q = first * queries + i;
          if (q >= args.num_queries) continue;
          for (int p = 0; p < shape.parts; ++p) parts[p] = cascade.collected_of(i, p);
          Bracket* brackets = shared.brackets + i * plan.levels;
          if (pass.narrows)
            narrow_query(cascade, pass, i, parts, brackets, w, m);
          else
            select_query(cascade, q, i, parts, brackets, w, m);
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

CpuPlan describe_plan(const CascadeArgs& args, const CascadePlan& whole) {
  CascadePlan plan = whole;
  const Shape shape = shape_of(args, plan);
  return {W,
          shape.threads,
          shape.blocks_per_group * shape.width,
          shape.groups,
          shape.parts,
          plan.passes,
          plan.levels,
          plan.int16_scores,
          plan.biased_late       ? "to what reaches the last stage"
          : plan.biased_mix >= 0 ? "while the keys stream by"
                                 : ""};
}

}  // namespace

extern const CpuKernels kernels;
const CpuKernels kernels = {cascade, describe_plan};

}  // namespace CPR_ISA_NAMESPACE
}  // namespace cpr
