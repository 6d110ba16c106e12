// Hands a call to the kernels of the best instruction set that this machine runs, and queries of a cascade
// whose brackets missed to them once more.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#ifdef CPR_HAS_avx2
#include <cpuid.h>
#endif

#include "../cpu_info.h"
#include "cascade/planner.h"
#include "kernels.h"

namespace cpr {

struct Isa {
  const char* name;
  const CpuKernels* kernels;
  const LossKernels* losses;
  const RerankKernels* reranks;
  const ShardKernels* shards;
  const PeakKernels* peak;
  int64_t int16_from;  // keys from which 16-bit products are faster than float32
};

// What each instruction set's objects define, and all of it as one Isa.
#define CPR_DECLARE_KERNELS(isa)               \
  namespace isa_##isa {                        \
    extern const CpuKernels kernels;           \
    extern const LossKernels loss_kernels;     \
    extern const RerankKernels rerank_kernels; \
    extern const ShardKernels shard_kernels;   \
    extern const PeakKernels peak_kernels;     \
  }
#define CPR_KERNELS_OF(name, isa, int16_from)                                        \
  Isa {                                                                              \
    name, &isa_##isa::kernels, &isa_##isa::loss_kernels, &isa_##isa::rerank_kernels, \
        &isa_##isa::shard_kernels, &isa_##isa::peak_kernels, int16_from              \
  }

CPR_DECLARE_KERNELS(generic)
#ifdef CPR_HAS_avx2
CPR_DECLARE_KERNELS(avx2)
#endif
#ifdef CPR_HAS_avx512
CPR_DECLARE_KERNELS(avx512)
#endif

namespace {

#ifdef CPR_HAS_avx2
// Not by __builtin_cpu_supports, which does not know the name in every clang.
bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}
#endif

// What this machine can run, best first.
std::vector<Isa> runnable() {
  std::vector<Isa> found;
#ifdef CPR_HAS_avx512
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("bmi2")) {
    if (__builtin_cpu_supports("avx512vnni")) found.push_back(CPR_KERNELS_OF("avx512vnni", avx512, 10240));
    found.push_back(CPR_KERNELS_OF("avx512", avx512, NEVER));
  }
#endif
#ifdef CPR_HAS_avx2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
      has_f16c())
    found.push_back(CPR_KERNELS_OF("avx2", avx2, 4096));
#endif
  found.push_back(CPR_KERNELS_OF("generic", generic, NEVER));
  return found;
}

Isa& chosen() {
  static Isa isa = runnable().front();
  return isa;
}

constexpr double WIDER = 3;  // brackets of queries that missed, times the usual: runs of like keys

// The queries that the plan's kernel marked, together and by another plan: rows and ids of these queries
// alone.
struct Retry {
  std::vector<int64_t> which;
  std::vector<View> views;
  std::vector<std::vector<char>> rows;
  std::vector<int64_t> ids, indices;
  std::vector<float> scores;
  CascadeArgs args;

  Retry(const CascadeArgs& whole, const std::vector<uint8_t>& missed, uint8_t mark)
      : views(whole.views, whole.views + whole.num_views), args(whole) {
    for (int64_t q = 0; q < whole.num_queries; ++q)
      if (missed[q] == mark) which.push_back(q);
    const int64_t size = whole.dtype == DType::float32 ? 4 : 2, k = whole.keep[whole.num_stages - 1];
    for (View& view : views) {
      const char* from = static_cast<const char*>(view.queries);
      std::vector<char> gathered;
      for (const int64_t q : which) {
        const char* row = from + q * view.query_stride * size;
        gathered.insert(gathered.end(), row, row + view.dim * size);
      }
      rows.push_back(std::move(gathered));
      view.queries = rows.back().data();
      view.query_stride = view.dim;
    }
    if (whole.query_ids)
      for (const int64_t q : which) ids.push_back(whole.query_ids[q]);
    indices.resize(which.size() * static_cast<size_t>(k));
    scores.resize(indices.size());
    args.views = views.data();
    args.num_queries = static_cast<int64_t>(which.size());
    args.query_ids = whole.query_ids ? ids.data() : nullptr;
    args.indices = indices.data();
    args.scores = scores.data();
  }

  void write(const CascadeArgs& whole) const {
    const int64_t k = whole.keep[whole.num_stages - 1];
    for (int64_t i = 0; i < args.num_queries; ++i) {
      std::copy_n(indices.data() + i * k, k, whole.indices + which[i] * k);
      std::copy_n(scores.data() + i * k, k, whole.scores + which[i] * k);
    }
  }
};

// Queries with this mark once more, by exact scores and brackets so much wider; those that miss again are
// MISSED. -1 when memory ran out.
int retry_with_brackets(const CascadeArgs& args, uint8_t mark, double wider, std::vector<uint8_t>& missed) {
  const Retry retry(args, missed, mark);
  if (retry.which.empty()) return 0;
  std::vector<uint8_t> missed_again(retry.which.size());
  PlanStorage store;
  CascadePlan plan = plan_cascade(retry.args, store, NEVER, wider);
  plan.missed = missed_again.data();
  const int status = chosen().kernels->cascade_topk(retry.args, plan);
  retry.write(args);
  for (size_t i = 0; i < missed_again.size(); ++i) missed[retry.which[i]] = missed_again[i];
  return status;
}

// Queries that are MISSED, from every entry. Returns how many; -1 when memory ran out.
int64_t retry_exhaustively(const CascadeArgs& args, const std::vector<uint8_t>& missed) {
  const Retry retry(args, missed, MISSED);
  if (retry.which.empty()) return 0;
  PlanStorage store;
  const int status = chosen().kernels->cascade_topk(retry.args, plan_exhaustive(retry.args, store));
  retry.write(args);
  return status < 0 ? status : retry.args.num_queries;
}

// The same where `exclude` has a row for each query: one by one, so that no rows of it are copied.
int64_t retry_excluding(const CascadeArgs& args, const std::vector<uint8_t>& missed) {
  int64_t tried = 0;
  for (int64_t q = 0; q < args.num_queries; ++q) {
    if (!missed[q]) continue;
    std::vector<uint8_t> only(missed.size());
    only[q] = MISSED;
    CascadeArgs row = args;
    row.exclude = args.exclude + q * args.exclude_stride;
    if (retry_exhaustively(row, only) < 0) return -1;
    ++tried;
  }
  return tried;
}

}  // namespace

std::vector<std::string> cpu_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : runnable()) names.emplace_back(isa.name);
  return names;
}

std::string cpu_isa() { return chosen().name; }

double cpu_flops_per_second(int threads) {
  return chosen().peak->flops_per_second(threads < 1 ? 1 : threads);
}

bool use_cpu_isa(const std::string& name) {
  for (const Isa& isa : runnable())
    if (name == isa.name) {
      chosen() = isa;
      return true;
    }
  return false;
}

int64_t cascade_topk_cpu(const CascadeArgs& args) {
  const int64_t k = args.keep[args.num_stages - 1];
  if (args.num_queries == 0) return 0;
  if (args.num_keys == 0) {
    std::fill(args.indices, args.indices + args.num_queries * k, int64_t{-1});
    std::fill(args.scores, args.scores + args.num_queries * k, -INFINITY);
    return 0;
  }
  PlanStorage store;
  CascadePlan plan = plan_cascade(args, store, chosen().int16_from);
  std::vector<uint8_t> missed(plan.levels > 0 ? args.num_queries : 0);
  if (!missed.empty()) plan.missed = missed.data();
  const int status = chosen().kernels->cascade_topk(args, plan);
  if (status < 0 || missed.empty()) return status;
  if (args.exclude) return retry_excluding(args, missed);
  if (retry_with_brackets(args, REFUSED, 1, missed) < 0) return -1;
  if (retry_with_brackets(args, MISSED, WIDER, missed) < 0) return -1;
  return retry_exhaustively(args, missed);
}

CpuPlan cascade_topk_cpu_plan(const CascadeArgs& args) {
  if (args.num_queries == 0 || args.num_keys == 0) return {};
  PlanStorage store;
  return chosen().kernels->describe_plan(args, plan_cascade(args, store, chosen().int16_from));
}

bool cascade_rerank_cpu(const RerankArgs& args) {
  if (args.cascade.num_queries == 0) return true;
  PlanStorage store;
  return chosen().reranks->cascade_rerank(args, plan_lists(args.cascade, store, args.num_candidates));
}

bool collect_entries_cpu(const CascadeArgs& args, const EntryLists& out) {
  PlanStorage store;
  return chosen().shards->collect_entries(args, plan_lists(args, store, 0), out);
}

void count_digits_cpu(const EntryLists& lists, int row, const DigitSearch& search, int32_t* counts) {
  chosen().shards->count_digits(lists, row, search, counts);
}

void keep_above_cpu(const EntryLists& lists, int row, const int32_t* cut, const int32_t* ties) {
  chosen().shards->keep_above(lists, row, cut, ties);
}

bool mil_nce_sweep_cpu(const LossArgs& args, const LossOut& out) {
  return args.num_queries == 0 || chosen().losses->sweep(args, out);
}

LossPlan mil_nce_cpu_plan(const LossArgs& args) {
  return args.num_queries == 0 ? LossPlan{} : chosen().losses->describe_plan(args);
}

bool mil_nce_share_cpu(const LossArgs& args, const LossShare& out) {
  return args.num_queries == 0 || chosen().losses->share(args, out);
}

bool mil_nce_keys_gradient_cpu(const LossArgs& args, const float* grad_loss, const float* lse_all,
                               const float* lse_positive, float* grad_keys) {
  if (args.num_queries == 0) {
    std::fill(grad_keys, grad_keys + args.num_keys * args.dim, 0.0f);
    return true;
  }
  return chosen().losses->keys_gradient(args, grad_loss, lse_all, lse_positive, grad_keys);
}

}  // namespace cpr
