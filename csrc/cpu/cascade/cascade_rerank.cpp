// cpr::cascade_rerank on CPU, compiled once per instruction set. A query's candidates are gathered a block at
// a time, turned so that candidates are lanes, and multiplied in cascade_topk's own order of sums: a score
// has the same bits in both ops. Nothing of size B x C x D exists, nor anything that grows with N.
#include "../../cascade_rerank.h"

#include "../arena.h"
#include "../kernels.h"
#include "../scores/gathered.h"
#include "../scores/mix.h"
#include "../workspace.h"
#include "filter.h"
#include "finish.h"
#include "plan.h"

namespace cpr {
namespace CPR_ISA_NAMESPACE {
namespace {

constexpr int BLOCK = Gathered::BLOCK;  // candidates scored at a time

// Where in a set of twice as many slots as candidates, a power of two, an entry is first looked for.
inline uint64_t slot_of(int32_t entry, uint64_t slots) {
  return (static_cast<uint64_t>(entry) * 0x9E3779B97F4A7C15ull >> 32) & (slots - 1);
}

inline uint64_t slots_for(int64_t candidates) {
  uint64_t slots = 16;
  while (slots < 2 * static_cast<uint64_t>(candidates)) slots *= 2;
  return slots;
}

// The distinct entries among a query's candidates, in order of first mention: which [C]. Returns how many.
inline int64_t distinct(const int64_t* candidates, int64_t n, int64_t num_keys, int32_t* seen,
                        int32_t* which) {
  const uint64_t slots = slots_for(n);
  std::memset(seen, 0xFF, slots * sizeof(int32_t));
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (candidates[i] < 0 || candidates[i] >= num_keys) continue;
    const int32_t entry = static_cast<int32_t>(candidates[i]);
    uint64_t slot = slot_of(entry, slots);
    while (seen[slot] >= 0 && seen[slot] != entry) slot = (slot + 1) & (slots - 1);
    if (seen[slot] == entry) continue;
    seen[slot] = entry;
    which[count++] = entry;
  }
  return count;
}

struct Memory {
  float* query;  // the query's row of each view, widened, one after another
  Gathered gathered;
  float* scores;       // [slots, BLOCK + 16]
  float* bias;         // [BLOCK] of its candidates
  const float** rows;  // [R]
  int32_t* which;      // [C]
  int32_t* seen;
  Eligibility eligible;
  char* collected;
  char* workspace;

  static Memory take(Arena& arena, const RerankArgs& args, const CascadePlan& plan) {
    const CascadeArgs& cascade = args.cascade;
    const Dims dims(cascade);
    Memory m;
    m.query = arena.take<float>(dims.total);
    m.gathered = Gathered::take(arena, dims.widest);
    m.scores = arena.take<float>((cascade.num_views + plan.mixes) * (BLOCK + 16));
    m.bias = arena.take<float>(BLOCK + 16);
    m.rows = arena.take<const float*>(plan.rows);
    m.which = arena.take<int32_t>(args.num_candidates + 16);
    m.seen = arena.take<int32_t>(static_cast<int64_t>(slots_for(args.num_candidates)));
    m.eligible = {&cascade, arena.take<int32_t>(BLOCK + 16), arena.take<uint8_t>(BLOCK + 16)};
    m.collected = arena.take<char>(Collected::bytes(plan));
    m.workspace = arena.take<char>(Workspace::bytes(plan, 1));
    return m;
  }
};

void rerank_query(const RerankArgs& args, const CascadePlan& plan, int64_t q, const Memory& m) {
  const CascadeArgs& cascade = args.cascade;
  const int64_t listed = distinct(args.candidates + q * args.candidates_stride, args.num_candidates,
                                  cascade.num_keys, m.seen, m.which);
  widen_query(cascade, q, m.query);
  for (int r = 0; r < plan.rows; ++r) m.rows[r] = m.scores + plan.slot_of_row[r] * (BLOCK + 16);
  const Collected collected = Collected::at(m.collected, plan);
  collected.clear(plan);
  for (int64_t first = 0; first < listed; first += BLOCK) {
    const int64_t count = listed - first < BLOCK ? listed - first : BLOCK;
    const Panel panel = {m.which + first, 0, count};
    const float* query = m.query;
    for (int v = 0; v < cascade.num_views; query += cascade.views[v++].dim)
      if (plan.view_used[v])
        m.gathered.score(cascade.views[v], cascade.dtype, query, panel.which, count, listed - first,
                         m.scores + v * (BLOCK + 16));
    if (plan.biased_mix >= 0)
      gather_bias(
          cascade.key_bias, count, [&](int64_t i) { return panel.which[i]; }, m.bias);
    for (int x = 0; x < plan.mixes; ++x)
      mix_scores(plan.mix_weights + x * cascade.num_views, cascade.num_views, m.scores, BLOCK + 16, count,
                 x == plan.biased_mix ? m.bias : nullptr, m.scores + (cascade.num_views + x) * (BLOCK + 16));
    m.eligible.load_panel(panel);
    filter_panel<0>(plan, panel, q, nullptr, m.rows, m.eligible, collected);
  }
  Workspace w = Workspace::at(m.workspace, plan, 1);
  w.entries = collected.list(plan);
  finish(cascade, plan, 0, nullptr, w, q);
}

bool rerank(const RerankArgs& args, const CascadePlan& plan) {
  const CascadeArgs& cascade = args.cascade;
  Arena arena{nullptr, 0};
  Memory::take(arena, args, plan);
  const int64_t thread_bytes = arena.used;
  const int threads = static_cast<int>(cascade.threads < 1                     ? 1
                                       : cascade.threads < cascade.num_queries ? cascade.threads
                                                                               : cascade.num_queries);
  char* memory = take_workspace(thread_bytes * threads);
  if (!memory) return false;
  arena = {memory, 0};
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const FloatEnvironment exact;
    Memory m;
#pragma omp critical(cpr_rerank_arena)
    m = Memory::take(arena, args, plan);
#pragma omp for schedule(dynamic)
    for (int64_t q = 0; q < cascade.num_queries; ++q) rerank_query(args, plan, q, m);
  }
  give_back_workspace(memory);
  return true;
}

}  // namespace

extern const RerankKernels rerank_kernels;
const RerankKernels rerank_kernels = {rerank};

}  // namespace CPR_ISA_NAMESPACE
}  // namespace cpr
