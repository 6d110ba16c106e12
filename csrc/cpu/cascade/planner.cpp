// Which keys a cascade visits when, and between which ranks of them its brackets lie.
#include "planner.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "../../bracket.h"
#include "../../cpu_info.h"
#include "../../weightings.h"

namespace cpr {

namespace {

constexpr int64_t STREAM_FROM = 4096;            // keys from which brackets pay for their sample
constexpr double SAMPLE_SHARE = 1.2;             // the first sample, in units of num_keys^(2/3)
constexpr int64_t MAX_SAMPLE = 4096;             // and at most
constexpr int64_t NARROW_FROM = 49152;           // keys from which brackets are narrowed again on the way
constexpr int64_t EXACT_FROM = 4 * NARROW_FROM;  // keys from which brackets are too narrow for int16 scores
constexpr int64_t INT16_SHARE = 64;              // of the keys that are results, at most, with int16 scores
constexpr int64_t MAX_INT16_DIM = 4096;          // beyond, rounding to 16 bits might make sums overflow
constexpr int64_t TAIL = 4096;                   // survivors that the exact stages take over at
constexpr double SPREAD = 3.7;           // bracket half-width in standard deviations of the sampled rank,
constexpr double REPEATED_SPREAD = 4.3;  // and where brackets are set many times over

// Stages with the same weighting share a row; a single view of weight 1 is its own score. `bias_last`: the
// last stage has a row of its own, a mix. Returns how many rows mix.
int plan_rows(const CascadeArgs& args, PlanStorage& store, bool bias_last) {
  const int V = args.num_views;
  store.view_used.assign(V, 0);
  int mixes = 0;
  for (int s = 0; s < args.num_stages; ++s) {
    const int first = first_same_weighting(args.weights, V, s);
    const bool biased = bias_last && s + 1 == args.num_stages;
    if (first < s && !biased) {
      store.row_of_stage.push_back(store.row_of_stage[first]);
      continue;
    }
    const float* weights = args.weights + static_cast<int64_t>(s) * V;
    const int view = biased ? -1 : only_view(weights, V);
    for (int v = 0; v < V; ++v) store.view_used[v] = store.view_used[v] || weights[v] != 0;
    store.row_of_stage.push_back(static_cast<int>(store.slot_of_row.size()));
    store.slot_of_row.push_back(view >= 0 ? view : V + mixes++);
    if (view < 0) store.mix_weights.insert(store.mix_weights.end(), weights, weights + V);
  }
  return mixes;
}

// How the keys are visited: all at once; or a sample of rows and then all; or, for long queues, a sample and
// then tiles in growing shares, so that what a query holds grows with its square root (in codes: no need).
void plan_passes(int64_t num_keys, bool int16_lists, std::vector<Pass>& passes) {
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
  if (num_keys >= NARROW_FROM && !int16_lists) shares = {UNITS / 4, UNITS};
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
bool fits_int16_scores(const CascadeArgs& args, const CascadePlan& plan, int64_t int16_from) {
  bool fits = args.num_keys >= int16_from && args.num_keys < EXACT_FROM && plan.mixes == 0 && !args.exclude &&
              args.keep[args.num_stages - 1] <= args.num_keys / INT16_SHARE;
  for (int v = 0; v < args.num_views; ++v) fits = fits && args.views[v].dim <= MAX_INT16_DIM;
  return fits;
}

// Levels, passes, and the room that a query needs; no levels where brackets would save little.
void plan_levels(const CascadeArgs& args, PlanStorage& store, CascadePlan& plan, double wider) {
  const int64_t N = args.num_keys;
  plan_passes(N, plan.int16_lists, store.passes);
  const int64_t tail = plan.int16_lists ? std::clamp(TAIL, N / 8, N / 4) : TAIL;
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
  if (plan.biased_late && plan.levels > 0 &&
      plan.levels < args.num_stages)  // the last stage's entries in float32 too, in half as many places
    plan.list_capacity = std::max(plan.list_capacity, 2 * store.keep[args.num_stages - 2] + 64);
  const double listed = plan.int16_scores ? most_held : static_cast<double>(plan.list_capacity);
  if (plan.levels == 0 || (listed >= static_cast<double>(N * 3 / 4) && store.passes.size() <= 2)) {
    plan.levels = 0;
    plan.int16_scores = plan.int16_lists = false;
    plan.list_capacity = N;
    store.passes.assign(1, {1, 1, 0, 1, false, false, nullptr, nullptr, nullptr});
  }
  plan.pass = store.passes.data();
  plan.passes = static_cast<int>(store.passes.size());
}

// Whether key_bias can wait until the last stage. Where it is not finite, some entries are NaN by it at once;
// where the last stage alone mixes views, adding it there costs less.
bool can_bias_late(const CascadeArgs& args) {
  const int V = args.num_views, last = args.num_stages - 1;
  if (first_same_weighting(args.weights, V, last) == last && only_view(args.weights + last * V, V) < 0)
    return false;
  uint32_t exponents = 0;  // the sign bit: some exponent is all ones
  for (int64_t i = 0; i < args.num_keys; ++i) {
    uint32_t bits;
    std::memcpy(&bits, args.key_bias + i, sizeof bits);
    exponents |= (bits & 0x7FFFFFFFu) + 0x00800000u;
  }
  return exponents >> 31 == 0;
}

// Everything of a plan but its passes.
void plan_stages(const CascadeArgs& args, PlanStorage& store, CascadePlan& plan, bool bias_late) {
  const bool bias_last = args.key_bias && !bias_late;
  plan.mixes = plan_rows(args, store, bias_last);
  plan.biased_mix = bias_last ? plan.mixes - 1 : -1;
  plan.biased_late = bias_late;
  plan.rows = static_cast<int>(store.slot_of_row.size());
  for (int s = 0; s < args.num_stages; ++s) store.keep.push_back(std::min(args.keep[s], args.num_keys));
  plan.keep = store.keep.data();
  plan.slot_of_row = store.slot_of_row.data();
  plan.row_of_stage = store.row_of_stage.data();
  plan.mix_weights = store.mix_weights.data();
  plan.view_used = store.view_used.data();
}

}  // namespace

CascadePlan plan_lists(const CascadeArgs& args, PlanStorage& store, int64_t list_capacity) {
  CascadePlan plan{};
  plan_stages(args, store, plan, false);
  plan.list_capacity = list_capacity;
  return plan;
}

CascadePlan plan_exhaustive(const CascadeArgs& args, PlanStorage& store) {
  CascadePlan plan = plan_lists(args, store, args.num_keys);
  store.passes.push_back({1, 1, 0, 1, false, false, nullptr, nullptr, nullptr});
  plan.pass = store.passes.data();
  plan.passes = 1;
  return plan;
}

CascadePlan plan_cascade(const CascadeArgs& args, PlanStorage& store, int64_t int16_from, double wider) {
  const auto plan_with = [&](bool bias_late) {
    CascadePlan plan{};
    store = {};
    plan_stages(args, store, plan, bias_late);
    plan.int16_scores = fits_int16_scores(args, plan, int16_from);
    plan.int16_lists = plan.int16_scores && args.num_keys <= MAX_CODE_KEYS && plan.rows <= MAX_CODE_ROWS;
    plan_levels(args, store, plan, wider);
    return plan;
  };
  const CascadePlan plan = plan_with(args.key_bias && can_bias_late(args));
  const bool too_late =
      plan.biased_late && plan.levels == args.num_stages;  // the sweep decides the last stage
  return too_late ? plan_with(false) : plan;
}

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

}  // namespace cpr
