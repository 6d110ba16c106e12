// Plans a cascade call and hands it to the kernels of the best instruction set that this machine runs.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "../cpu_info.h"
#include "../mil_nce.h"
#include "../ranking.h"
#include "cascade_plan.h"

namespace cpr {

namespace isa_generic {
extern const CpuKernels kernels;
extern const LossKernels loss_kernels;
}
#ifdef CPR_HAS_avx2
namespace isa_avx2 {
extern const CpuKernels kernels;
extern const LossKernels loss_kernels;
}
#endif
#ifdef CPR_HAS_avx512
namespace isa_avx512 {
extern const CpuKernels kernels;
extern const LossKernels loss_kernels;
}
#endif

namespace {

struct Isa {
  const char* name;
  const CpuKernels* kernels;
  const LossKernels* losses;
};

// What this machine can run, best first.
std::vector<Isa> runnable() {
  std::vector<Isa> found;
#ifdef CPR_HAS_avx512
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("bmi2"))
    found.push_back({"avx512", &isa_avx512::kernels, &isa_avx512::loss_kernels});
#endif
#ifdef CPR_HAS_avx2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
      __builtin_cpu_supports("f16c"))
    found.push_back({"avx2", &isa_avx2::kernels, &isa_avx2::loss_kernels});
#endif
  found.push_back({"generic", &isa_generic::kernels, &isa_generic::loss_kernels});
  return found;
}

Isa& chosen() {
  static Isa isa = runnable().front();
  return isa;
}

constexpr int64_t STREAM_FROM = 4096;  // keys from which brackets pay for their sample
constexpr int64_t TAIL = 1024;         // survivors that the exact stages take over at
constexpr int MAX_LEVELS = 4;          // as in filter.h
constexpr double SPREAD = 3.7;         // bracket half-width in standard deviations of the sampled rank

struct PlanStorage {
  std::vector<int> slot_of_row, row_of_stage;
  std::vector<float> mix_weights;
  std::vector<uint8_t> view_used;
  std::vector<int64_t> keep, certain_rank, middle_rank, possible_rank;
  std::vector<int32_t> sample;
};

// Stages that judge alike share a row; a single view of weight 1 is its own score.
int plan_rows(const CascadeArgs& args, PlanStorage& store) {
  const int V = args.num_views;
  std::vector<const float*> rows;
  store.view_used.assign(V, 0);
  int mixes = 0;
  for (int s = 0; s < args.num_stages; ++s) {
    const float* weights = args.weights + static_cast<int64_t>(s) * V;
    int row = -1;
    for (size_t r = 0; r < rows.size(); ++r)
      if (std::equal(weights, weights + V, rows[r])) row = static_cast<int>(r);
    if (row < 0) {
      row = static_cast<int>(rows.size());
      rows.push_back(weights);
      int judges = 0, view = 0;
      for (int v = 0; v < V; ++v)
        if (weights[v] != 0) {
          ++judges;
          view = v;
          store.view_used[v] = 1;
        }
      if (judges == 1 && weights[view] == 1.0f) {
        store.slot_of_row.push_back(view);
      } else {
        store.slot_of_row.push_back(V + mixes++);
        store.mix_weights.insert(store.mix_weights.end(), weights, weights + V);
      }
    }
    store.row_of_stage.push_back(row);
  }
  return mixes;
}

// A sample spread evenly over the queue, with jitter so that no period of the queue can hide from it.
std::vector<int32_t> draw_sample(int64_t num_keys) {
  if (num_keys < STREAM_FROM) return {};
  const double wanted = std::pow(static_cast<double>(num_keys), 2.0 / 3.0);
  const int64_t size = std::min<int64_t>(num_keys / 4, (static_cast<int64_t>(wanted) + 15) / 16 * 16);
  std::vector<int32_t> sample(size);
  uint64_t state = 0x2545F4914F6CDD1Dull;
  for (int64_t i = 0; i < size; ++i) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    const int64_t begin = i * num_keys / size, end = (i + 1) * num_keys / size;
    sample[i] = static_cast<int32_t>(begin + static_cast<int64_t>((state >> 33) % static_cast<uint64_t>(end - begin)));
  }
  return sample;
}

// Ranks of the sample between which each leading stage's threshold almost surely lies, and the room that needs.
void plan_levels(const CascadeArgs& args, PlanStorage& store, CascadePlan& plan) {
  const int64_t N = args.num_keys;
  plan.levels = 0;
  plan.sample_size = 0;
  plan.list_capacity = N;
  if (N < STREAM_FROM) return;
  store.sample = draw_sample(N);
  const int64_t size = static_cast<int64_t>(store.sample.size());
  store.sample.resize(size + 16);  // readable a vector beyond its end
  const double keys_per_sample = static_cast<double>(N) / static_cast<double>(size);
  double entering = static_cast<double>(size);  // sampled entries expected to enter the stage
  double collected = 0;                         // entries expected to be undecided somewhere
  for (int s = 0; s < args.num_stages && s < MAX_LEVELS; ++s) {
    const double middle = static_cast<double>(store.keep[s]) / keys_per_sample;
    // the sample's stages before are cut at their own ranks, so what is left to vary is this stage's share of them
    const double spread = SPREAD * std::sqrt(middle * std::max(1.0 - middle / entering, 0.0) + 1.0) + 1.0;
    const double high = std::max(std::floor(middle - spread), 0.0), low = std::ceil(middle + spread);
    collected += (std::min(low, entering) - high) * keys_per_sample;
    store.certain_rank.push_back(static_cast<int64_t>(high));
    store.middle_rank.push_back(std::max<int64_t>(static_cast<int64_t>(std::lround(middle)), 1));
    store.possible_rank.push_back(static_cast<int64_t>(low));
    ++plan.levels;
    entering = std::max(middle, 1.0);
    if (store.keep[s] <= TAIL) break;
  }
  const int64_t expected = static_cast<int64_t>(collected * 1.25) + store.keep[plan.levels - 1];
  if (expected >= N * 3 / 4) {  // little would be saved
    plan.levels = 0;
    return;
  }
  plan.list_capacity = std::max(expected, size) + 2048;
  plan.sample_size = size;
}

}  // namespace

void sort_ranking_keys(uint64_t* keys, int64_t n) { std::sort(keys, keys + n); }

std::vector<int32_t> sampled_keys(int64_t num_keys) { return draw_sample(num_keys); }

std::vector<std::string> cpu_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : runnable()) names.emplace_back(isa.name);
  return names;
}

std::string cpu_isa() { return chosen().name; }

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
  CascadePlan plan{};
  plan.mixes = plan_rows(args, store);
  plan.rows = static_cast<int>(store.slot_of_row.size());
  for (int s = 0; s < args.num_stages; ++s) store.keep.push_back(std::min(args.keep[s], args.num_keys));
  plan.keep = store.keep.data();
  plan_levels(args, store, plan);
  plan.slot_of_row = store.slot_of_row.data();
  plan.row_of_stage = store.row_of_stage.data();
  plan.mix_weights = store.mix_weights.data();
  plan.view_used = store.view_used.data();
  plan.sample = store.sample.data();
  plan.certain_rank = store.certain_rank.data();
  plan.middle_rank = store.middle_rank.data();
  plan.possible_rank = store.possible_rank.data();
  return chosen().kernels->cascade_topk(args, plan);
}

bool mil_nce_sweep_cpu(const LossArgs& args, const LossOut& out) {
  return args.num_queries == 0 || chosen().losses->sweep(args, out);
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
