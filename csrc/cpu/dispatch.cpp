// Plans a cascade call and hands it to the kernels of the best instruction set that this machine runs.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "../bracket.h"
#include "../cpu_info.h"
#include "../weightings.h"
#include "../mil_nce.h"
#include "cascade/plan.h"

namespace cpr {

struct Isa {
  const char* name;
  const CpuKernels* kernels;
  const LossKernels* losses;
  const RerankKernels* reranks;
  const ShardKernels* shards;
  const PeakKernels* peak;
  int64_t coarse_from;  // keys from which 16-bit products are faster than float32
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
#define CPR_KERNELS_OF(name, isa, coarse_from)                                       \
  Isa {                                                                              \
    name, &isa_##isa::kernels, &isa_##isa::loss_kernels, &isa_##isa::rerank_kernels, \
        &isa_##isa::shard_kernels, &isa_##isa::peak_kernels, coarse_from             \
  }

CPR_DECLARE_KERNELS(generic)
#ifdef CPR_HAS_avx2
CPR_DECLARE_KERNELS(avx2)
#endif
#ifdef CPR_HAS_avx512
CPR_DECLARE_KERNELS(avx512)
#endif

namespace {

constexpr int64_t NEVER = INT64_MAX;

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
      __builtin_cpu_supports("f16c"))
    found.push_back(CPR_KERNELS_OF("avx2", avx2, 4096));
#endif
  found.push_back(CPR_KERNELS_OF("generic", generic, NEVER));
  return found;
}

Isa& chosen() {
  static Isa isa = runnable().front();
  return isa;
}

constexpr int64_t STREAM_FROM = 4096;            // keys from which brackets pay for their sample
constexpr double SAMPLE_SHARE = 1.2;             // the first sample, in units of num_keys^(2/3)
constexpr int64_t MAX_SAMPLE = 4096;             // and at most
constexpr int64_t NARROW_FROM = 49152;           // keys from which brackets are narrowed again on the way
constexpr int64_t EXACT_FROM = 4 * NARROW_FROM;  // keys from which brackets are too narrow for coarse scores
constexpr int64_t COARSE_SHARE = 64;      // of the keys that are results, at most, where scores are coarse
constexpr int64_t MAX_COARSE_DIM = 4096;  // beyond, rounding to 16 bits might make sums overflow
constexpr int64_t TAIL = 4096;            // survivors that the exact stages take over at
constexpr double SPREAD = 3.7;            // bracket half-width in standard deviations of the sampled rank,
constexpr double REPEATED_SPREAD = 4.3;   // and where brackets are set many times over
constexpr double WIDER = 3;               // times that, for queries whose brackets missed: runs of like keys

struct PlanStorage {
  std::vector<int> slot_of_row, row_of_stage;
  std::vector<float> mix_weights;
  std::vector<uint8_t> view_used;
  std::vector<int64_t> keep;
  std::vector<Pass> passes;
  std::vector<std::array<int64_t, 3 * MAX_LEVELS>> ranks;  // of each pass: certain, middle, possible
};

// Stages that judge alike share a row; a single view of weight 1 is its own score. Returns how many rows mix.
int plan_rows(const CascadeArgs& args, PlanStorage& store) {
  const int V = args.num_views;
  store.view_used.assign(V, 0);
  int mixes = 0;
  for (int s = 0; s < args.num_stages; ++s) {
    const int first = first_alike(args.weights, V, s);
    if (first < s) {
      store.row_of_stage.push_back(store.row_of_stage[first]);
      continue;
    }
    const float* weights = args.weights + static_cast<int64_t>(s) * V;
    const int view = only_view(weights, V);
    for (int v = 0; v < V; ++v) store.view_used[v] = store.view_used[v] || weights[v] != 0;
    store.row_of_stage.push_back(static_cast<int>(store.slot_of_row.size()));
    store.slot_of_row.push_back(view >= 0 ? view : V + mixes++);
    if (view < 0) store.mix_weights.insert(store.mix_weights.end(), weights, weights + V);
  }
  return mixes;
}

// How the keys are visited: all at once; or a sample of rows and then all; or, for long queues, a sample and
// then tiles in growing shares, so that what a query holds grows with its square root (in codes: no need).
void plan_passes(int64_t num_keys, bool coded, std::vector<Pass>& passes) {
  if (num_keys < STREAM_FROM) {
    passes.push_back({1, 1, 0, 1, false, false, nullptr, nullptr, nullptr});
    return;
  }
  const double sample =
      std::min(SAMPLE_SHARE * std::pow(static_cast<double>(num_keys), 2.0 / 3.0), 1.0 * MAX_SAMPLE);
  const int64_t stride = std::max<int64_t>(static_cast<int64_t>(static_cast<double>(num_keys) / sample), 4);
  passes.push_back({1, stride, 0, 1, true, true, nullptr, nullptr, nullptr});
  constexpr int64_t TILE = 16, UNITS = 32;
  std::vector<int64_t> shares = {UNITS};  // of the tiles seen by the end of each pass, in 32nds
  if (num_keys >= NARROW_FROM && !coded) shares = {UNITS / 4, UNITS};
  if (num_keys >= 4 * NARROW_FROM)
    shares = {UNITS / 16, UNITS / 4, UNITS / 2, UNITS * 3 / 4, UNITS * 7 / 8, UNITS};
  if (num_keys >= 64 * NARROW_FROM) shares = {1, UNITS / 8, UNITS / 2, UNITS * 3 / 4, UNITS * 7 / 8, UNITS};
  int64_t seen = 0;
  for (const int64_t share : shares) {
    passes.push_back({TILE, UNITS, seen, share, share < UNITS, false, nullptr, nullptr, nullptr});
    seen = share;
  }
}

// Ranks, among the share of keys visited by the end of a pass, between which each level's threshold almost
// surely lies. Returns how many entries are then undecided somewhere.
double plan_ranks(const CascadePlan& plan, const CascadeArgs& args, double seen, double deviations,
                  int64_t* ranks) {
  double entering = seen * static_cast<double>(args.num_keys), undecided = 0;
  for (int l = 0; l < plan.levels; ++l) {
    const double middle = static_cast<double>(plan.keep[l]) * seen;
    // the levels before are cut at their own ranks, so what is left to vary is this level's share of them
    const double spread = bracket_spread(middle, entering, deviations, 1.0);
    const double high = std::max(std::floor(middle - spread), 0.0), low = std::ceil(middle + spread);
    undecided += std::min(low, entering) - high;
    ranks[l] = static_cast<int64_t>(high);
    ranks[MAX_LEVELS + l] = std::max<int64_t>(static_cast<int64_t>(std::lround(middle)), 1);
    ranks[2 * MAX_LEVELS + l] = static_cast<int64_t>(low);
    entering = std::max(middle, 1.0);
  }
  return undecided;
}

// Whether keys are scored by 16-bit products first: where those are faster, brackets leave room for their
// error, and few results need an exact score. Queries that they fail are tried again without.
bool scores_coarsely(const CascadeArgs& args, const CascadePlan& plan) {
  bool fits = args.num_keys >= chosen().coarse_from && args.num_keys < EXACT_FROM && plan.mixes == 0 &&
              !args.exclude && args.keep[args.num_stages - 1] <= args.num_keys / COARSE_SHARE;
  for (int v = 0; v < args.num_views; ++v) fits = fits && args.views[v].dim <= MAX_COARSE_DIM;
  return fits;
}

// Levels, passes, and the room that a query needs; no levels where brackets would save little.
void plan_levels(const CascadeArgs& args, PlanStorage& store, CascadePlan& plan, double wider) {
  const int64_t N = args.num_keys;
  plan_passes(N, plan.coded, store.passes);
  const int64_t tail = plan.coded ? std::clamp(TAIL, N / 8, N / 4) : TAIL;
  while (store.passes.size() > 1 && plan.levels < args.num_stages && plan.levels < MAX_LEVELS) {
    if (store.keep[plan.levels++] <= tail) break;
  }
  store.ranks.resize(store.passes.size());
  plan.passes = static_cast<int>(store.passes.size());
  const double deviations = wider * (plan.passes > 2 ? REPEATED_SPREAD : SPREAD);
  double seen = 0, held = 0, most_held = 0;  // share of the keys visited; entries held; at any time
  double undecided = 1.0;                    // share of the visited keys that brackets leave undecided
  for (size_t x = 0; x < store.passes.size() && plan.levels > 0; ++x) {
    Pass& pass = store.passes[x];
    const double now = static_cast<double>(pass.end) / static_cast<double>(pass.units);
    const double sure = static_cast<double>(store.keep[plan.levels - 1]) / static_cast<double>(N);
    held += (now - seen) * static_cast<double>(N) * std::min(undecided + sure, 1.0);
    most_held = std::max(most_held, held);
    seen = now;
    if (!pass.narrows) break;
    int64_t* ranks = store.ranks[x].data();
    undecided = plan_ranks(plan, args, seen, deviations, ranks) / (seen * static_cast<double>(N));
    held = std::min(undecided + sure, 1.0) * seen * static_cast<double>(N);
    if (pass.starts_over) seen = held = 0;
    pass.certain_rank = ranks;
    pass.middle_rank = ranks + MAX_LEVELS;
    pass.possible_rank = ranks + 2 * MAX_LEVELS;
  }
  plan.list_capacity = static_cast<int64_t>(most_held * 1.25) + 2048;
  const double listed = plan.coarse ? most_held : static_cast<double>(plan.list_capacity);
  if (plan.levels == 0 || (listed >= static_cast<double>(N * 3 / 4) && store.passes.size() <= 2)) {
    plan.levels = 0;
    plan.coarse = plan.coded = false;
    plan.list_capacity = N;
    store.passes.assign(1, {1, 1, 0, 1, false, false, nullptr, nullptr, nullptr});
  }
  plan.pass = store.passes.data();
  plan.passes = static_cast<int>(store.passes.size());
}

// Everything of a plan but its passes.
void plan_stages(const CascadeArgs& args, PlanStorage& store, CascadePlan& plan) {
  plan.mixes = plan_rows(args, store);
  plan.rows = static_cast<int>(store.slot_of_row.size());
  for (int s = 0; s < args.num_stages; ++s) store.keep.push_back(std::min(args.keep[s], args.num_keys));
  plan.keep = store.keep.data();
  plan.slot_of_row = store.slot_of_row.data();
  plan.row_of_stage = store.row_of_stage.data();
  plan.mix_weights = store.mix_weights.data();
  plan.view_used = store.view_used.data();
}

// The plan of a call that has queries and keys. `exact`: without coarse scores, and with brackets so much
// wider.
CascadePlan plan_call(const CascadeArgs& args, PlanStorage& store, bool exact = false, double wider = 1) {
  CascadePlan plan{};
  plan_stages(args, store, plan);
  plan.coarse = !exact && scores_coarsely(args, plan);
  plan.coded = plan.coarse && args.num_keys <= MAX_CODED_KEYS && plan.rows <= MAX_CODED_ROWS;
  plan_levels(args, store, plan, wider);
  return plan;
}

// The queries marked in `missed`, together, by exact scores alone and with brackets so much wider.
// `may_miss`: they are marked again where they miss; or returns how many went the long way then.
int64_t try_again(const CascadeArgs& args, uint8_t mark, double wider, bool may_miss,
                  std::vector<uint8_t>& missed) {
  std::vector<int64_t> which, ids;
  for (int64_t q = 0; q < args.num_queries; ++q)
    if (missed[q] == mark) which.push_back(q);
  if (which.empty()) return 0;
  const int64_t n = static_cast<int64_t>(which.size()), k = args.keep[args.num_stages - 1];
  const size_t size = args.dtype == DType::float32 ? 4 : 2;
  std::vector<View> views(args.views, args.views + args.num_views);
  std::vector<std::vector<char>> rows;
  for (View& view : views) {
    const char* from = static_cast<const char*>(view.queries);
    std::vector<char> gathered;
    for (const int64_t q : which) {
      const char* row = from + q * view.query_stride * static_cast<int64_t>(size);
      gathered.insert(gathered.end(), row, row + view.dim * static_cast<int64_t>(size));
    }
    rows.push_back(std::move(gathered));
    view.queries = rows.back().data();
    view.query_stride = view.dim;
  }
  if (args.query_ids)
    for (const int64_t q : which) ids.push_back(args.query_ids[q]);
  std::vector<int64_t> indices(n * k);
  std::vector<float> scores(n * k);
  CascadeArgs again = args;
  again.views = views.data();
  again.num_queries = n;
  again.query_ids = args.query_ids ? ids.data() : nullptr;
  again.indices = indices.data();
  again.scores = scores.data();
  PlanStorage store;
  CascadePlan plan = plan_call(again, store, true, wider);
  std::vector<uint8_t> missed_again(n);
  if (may_miss) plan.missed = missed_again.data();
  const int64_t status = chosen().kernels->cascade_topk(again, plan);
  for (int64_t i = 0; i < n; ++i) {
    missed[which[i]] = missed_again[i];
    std::copy_n(indices.data() + i * k, k, args.indices + which[i] * k);
    std::copy_n(scores.data() + i * k, k, args.scores + which[i] * k);
  }
  return status;
}

}  // namespace

std::vector<int64_t> sampled_keys(int64_t num_keys) {
  std::vector<Pass> passes;
  plan_passes(num_keys, false, passes);
  std::vector<int64_t> keys;
  const int64_t units = passes.front().units;
  for (int64_t stride = 0; stride * units < num_keys && passes.size() > 1; ++stride) {
    const int64_t key = stride * units + scrambled(units, stride, 0);
    if (key < num_keys) keys.push_back(key);
  }
  return keys;
}

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
  CascadePlan plan = plan_call(args, store);
  // a second try gathers queries and ids, but no rows of a mask B x N
  std::vector<uint8_t> missed(plan.passes > 1 && !args.exclude ? args.num_queries : 0);
  if (!missed.empty()) plan.missed = missed.data();
  int64_t status = chosen().kernels->cascade_topk(args, plan);
  if (status < 0 || missed.empty()) return status;
  status = try_again(args, REFUSED, 1, true, missed);
  return status < 0 ? status : status + try_again(args, MISSED, WIDER, false, missed);
}

CpuPlan cascade_topk_cpu_plan(const CascadeArgs& args) {
  if (args.num_queries == 0 || args.num_keys == 0) return {};
  PlanStorage store;
  return chosen().kernels->told(args, plan_call(args, store));
}

int64_t cascade_topk_exhaustive(const CascadeArgs& args) {
  PlanStorage store;
  CascadePlan plan{};
  plan_stages(args, store, plan);
  store.passes.push_back({1, 1, 0, 1, false, false, nullptr, nullptr, nullptr});
  plan.pass = store.passes.data();
  plan.passes = 1;
  plan.list_capacity = args.num_keys;
  return chosen().kernels->cascade_topk(args, plan);
}

bool cascade_rerank_cpu(const RerankArgs& args) {
  if (args.cascade.num_queries == 0) return true;
  PlanStorage store;
  CascadePlan plan{};
  plan_stages(args.cascade, store, plan);
  plan.list_capacity = args.num_candidates;
  return chosen().reranks->cascade_rerank(args, plan);
}

bool collect_entries_cpu(const CascadeArgs& args, const EntryLists& out) {
  PlanStorage store;
  CascadePlan plan{};
  plan_stages(args, store, plan);
  return chosen().shards->collect_entries(args, plan, out);
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
  return args.num_queries == 0 ? LossPlan{} : chosen().losses->told(args);
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
