// cpr::cascade_topk on CPU, compiled once per instruction set. No B x N buffer: keys stream by in panels,
// their scores stay in cache, and only entries that may still be selected are kept.
#include "../cascade_topk.h"

#include <cstdlib>

#include "arena.h"
#include "cascade_plan.h"
#include "filter.h"
#include "resolve.h"
#include "workspace.h"

namespace cpr {
namespace CPR_ISA_NAMESPACE {
namespace {

constexpr int64_t PANEL = 512;  // keys scored and filtered at a time
constexpr int64_t ROW =
    PANEL + 16;  // floats a query's scores take: rows a power of two apart share cache sets
constexpr int64_t ROUND_BYTES =
    4 << 20;  // what a thread's queries may collect at a time, roughly: a level-2 cache
constexpr int64_t WIDE_BYTES =
    10 << 20;  // and where keys come from memory, so that visiting them less often pays
constexpr int64_t SHARED_BYTES =
    16 << 20;  // and at most at a time where threads share the keys: more queries take turns
constexpr int64_t CACHED_KEYS = 16 << 20;  // bytes of keys that stay in a last-level cache

// How a call is cut up: blocks of `width` queries, supers of blocks that share a visit of the keys, rounds of
// supers.
struct Shape {
  int vectors, width;  // width: queries, `vectors` vectors of them
  int64_t blocks, blocks_per_super, supers, supers_per_round;
  int parts;  // of the keys, for threads that share a super
  int threads;
};

struct ThreadMemory {
  float* wide;         // one tile of keys in float32
  float* scores;       // [slots, queries of a super, ROW]
  const float** rows;  // [R]
  int32_t* which;      // [PANEL] keys of a gathered panel
  Eligibility eligible;
  char* workspace;

  static ThreadMemory take(Arena& arena, const CascadeArgs& args, const CascadePlan& plan, const Shape& shape,
                           int64_t max_dim) {
    const int64_t slots = args.num_views + plan.mixes, queries = shape.blocks_per_super * shape.width;
    ThreadMemory m;
    m.wide = arena.take<float>(TILE * max_dim);
    m.scores = arena.take<float>(slots * queries * ROW);
    m.rows = arena.take<const float*>(plan.rows);
    m.which = arena.take<int32_t>(PANEL + 16);
    m.eligible = {&args, arena.take<int32_t>(PANEL + 16), arena.take<uint8_t>(PANEL + 16)};
    m.workspace = arena.take<char>(Workspace::bytes(plan, shape.parts));
    return m;
  }
};

struct SharedMemory {
  float* packed;      // per super of the round: [V][blocks][dim, width]
  char* collected;    // [queries of a round, parts]
  Bracket* brackets;  // [queries of a round, L]

  static SharedMemory take(Arena& arena, const CascadePlan& plan, const Shape& shape, int64_t total_dim) {
    const int64_t blocks = shape.supers_per_round * shape.blocks_per_super, queries = blocks * shape.width;
    SharedMemory m;
    m.packed = arena.take<float>(queries * total_dim);
    m.collected = arena.take<char>(queries * shape.parts * Collected::bytes(plan));
    m.brackets = arena.take<Bracket>(queries * (plan.levels ? plan.levels : 1));
    return m;
  }
};

// Whether every key may be selected and is collected: scores then go straight into the lists (`score_lists`).
bool collects_all(const CascadeArgs& args, const CascadePlan& plan) {
  return plan.levels == 0 && plan.mixes == 0 && !args.key_ids && !args.exclude;
}

template <int NR>
struct Cascade {
  const CascadeArgs& args;
  const CascadePlan& plan;
  const Shape& shape;
  const SharedMemory& shared;
  int64_t total_dim;

  int64_t queries_of_super() const { return shape.blocks_per_super * shape.width; }
  int blocks_of(int64_t super) const {  // the last super may have fewer
    const int64_t left = shape.blocks - super * shape.blocks_per_super;
    return static_cast<int>(left < shape.blocks_per_super ? left : shape.blocks_per_super);
  }
  const float* packed_of(int64_t slot_in_round, int view) const {
    const float* place = shared.packed + slot_in_round * queries_of_super() * total_dim;
    for (int v = 0; v < view; ++v) place += queries_of_super() * args.views[v].dim;
    return place;
  }
  char* collected_at(int64_t query_in_round, int part) const {
    return shared.collected + (query_in_round * shape.parts + part) * Collected::bytes(plan);
  }
  Collected collected_of(int64_t query_in_round, int part) const {
    return Collected::at(collected_at(query_in_round, part), plan);
  }
  void pack(int64_t super, int64_t slot_in_round) const {
    for (int v = 0; v < args.num_views; ++v) {
      float* place = const_cast<float*>(packed_of(slot_in_round, v));
      for (int64_t b = 0; b < shape.blocks_per_super; ++b) {
        const int64_t first = (super * shape.blocks_per_super + b) * shape.width;
        const int64_t left = args.num_queries - first;
        pack_queries(args.views[v], args.dtype, first, left < 0 ? 0 : left, shape.width,
                     place + b * args.views[v].dim * shape.width);
      }
    }
  }

  // Scores of a panel for the queries of a super, mixes included.
  void score(const Panel& panel, int64_t slot_in_round, int64_t super, const ThreadMemory& m) const {
    const int64_t slot_size = queries_of_super() * ROW;
    const int blocks = blocks_of(super);
    for (int v = 0; v < args.num_views; ++v) {
      if (!plan.view_used[v]) continue;
      score_panel<NR>(args.views[v], args.dtype, panel, packed_of(slot_in_round, v), blocks, m.wide,
                      m.scores + v * slot_size, ROW);
    }
    for (int x = 0; x < plan.mixes; ++x) mix(x, slot_size, m);
  }

  void mix(int x, int64_t slot_size, const ThreadMemory& m) const {
    float* out = m.scores + (args.num_views + x) * slot_size;
    bool first = true;
    for (int v = 0; v < args.num_views; ++v) {
      const float weight = plan.mix_weights[x * args.num_views + v];
      if (weight == 0) continue;
      const float* view = m.scores + v * slot_size;
      for (int64_t i = 0; i < slot_size; i += W) {
        const F term = mul(load(view + i), set1(weight));
        store(out + i, first ? term : add(load(out + i), term));
      }
      first = false;
    }
  }

  void point_rows(const ThreadMemory& m, int64_t query, int64_t queries) const {
    for (int r = 0; r < plan.rows; ++r) m.rows[r] = m.scores + (plan.slot_of_row[r] * queries + query) * ROW;
  }

  // How many panels a pass has, and its p-th; a panel holds the pass's keys of a few whole strides.
  int64_t strides_a_panel(const Pass& pass) const { return PANEL / ((pass.end - pass.begin) * pass.run); }
  int64_t panels_of(const Pass& pass) const {
    if (pass.end - pass.begin == pass.units) return (args.num_keys + PANEL - 1) / PANEL;
    const int64_t stride = pass.units * pass.run, strides = (args.num_keys + stride - 1) / stride;
    return (strides + strides_a_panel(pass) - 1) / strides_a_panel(pass);
  }
  Panel panel_at(const Pass& pass, int64_t p, int32_t* which) const {
    if (pass.end - pass.begin == pass.units) {
      const int64_t first = p * PANEL, left = args.num_keys - first;
      return {nullptr, first, left < PANEL ? left : PANEL};
    }
    int64_t count = 0;
    for (int64_t i = 0; i < strides_a_panel(pass); ++i) {
      const int64_t stride = p * strides_a_panel(pass) + i, first = stride * pass.units * pass.run;
      if (pass.end - pass.begin == 1) {
        count =
            append_run(first + scrambled(pass.units, stride, pass.begin) * pass.run, pass.run, which, count);
        continue;
      }
      uint64_t taken = 0;  // units at most 64, in ascending order
      for (int64_t rank = pass.begin; rank < pass.end; ++rank)
        taken |= uint64_t{1} << scrambled(pass.units, stride, rank);
      for (; taken; taken &= taken - 1)
        count = append_run(first + __builtin_ctzll(taken) * pass.run, pass.run, which, count);
    }
    return {which, 0, count};
  }
  int64_t append_run(int64_t first, int64_t run, int32_t* which, int64_t count) const {
    for (int64_t key = first; key < first + run && key < args.num_keys; ++key)
      which[count++] = static_cast<int32_t>(key);
    return count;
  }

  void start(int64_t slot_in_round) const {
    const int64_t queries = queries_of_super(), first = slot_in_round * queries;
    for (int64_t i = first; i < first + queries; ++i) {
      for (int part = 0; part < shape.parts; ++part) collected_of(i, part).clear(plan);
      for (int l = 0; l < plan.levels; ++l)
        shared.brackets[i * plan.levels + l] = {cut_nothing(), cut_everything()};
    }
  }

  // A part's keys of a pass, panel by panel, for all queries of a super.
  template <int R>
  void sweep(const Pass& pass, int64_t super, int64_t slot_in_round, int part, const ThreadMemory& m) const {
    const int64_t queries = queries_of_super(), first_query = super * queries, panels = panels_of(pass);
    for (int64_t p = part; p < panels; p += shape.parts) {
      const Panel panel = panel_at(pass, p, m.which);
      if (panel.count == 0) continue;
      score(panel, slot_in_round, super, m);
      m.eligible.load_panel(panel);
      for (int64_t i = 0; i < queries && first_query + i < args.num_queries; ++i) {
        const int64_t in_round = slot_in_round * queries + i;
        point_rows(m, i, queries);
        filter_panel<R>(plan, panel, first_query + i, shared.brackets + in_round * plan.levels, m.rows,
                        m.eligible, collected_of(in_round, part));
      }
    }
  }
  // A part's keys, every score written where `list_all` finds it: panel after panel, a row a view.
  void score_lists(const Pass& pass, int64_t super, int64_t slot_in_round, int part,
                   const ThreadMemory& m) const {
    const int64_t stride = shape.parts * Collected::bytes(plan) / static_cast<int64_t>(sizeof(float));
    const List list = collected_of(slot_in_round * queries_of_super(), part).list(plan);
    int64_t at = 0;
    for (int64_t p = part; p < panels_of(pass); p += shape.parts, at += PANEL)
      for (int r = 0; r < plan.rows; ++r) {
        const int view = plan.slot_of_row[r];
        score_panel<NR>(args.views[view], args.dtype, panel_at(pass, p, m.which),
                        packed_of(slot_in_round, view), blocks_of(super), m.wide, list.row(r) + at, stride);
      }
  }
  // What `score_lists` wrote for a query, as one list without NaN.
  void list_all(int64_t query_in_round, List& all) const {
    for (int part = 0; part < shape.parts; ++part) {
      const List list = collected_of(query_in_round, part).list(plan);
      int64_t at = 0;
      for (int64_t first = part * PANEL; first < args.num_keys; first += shape.parts * PANEL, at += PANEL)
        append_scored(list, at, first, args.num_keys - first < PANEL ? args.num_keys - first : PANEL,
                      plan.rows, all);
    }
  }
  void sweep_rows(const Pass& pass, int64_t super, int64_t slot_in_round, int part,
                  const ThreadMemory& m) const {
    if (collects_all(args, plan)) return score_lists(pass, super, slot_in_round, part, m);
    switch (plan.rows) {
      case 1:
        return sweep<1>(pass, super, slot_in_round, part, m);
      case 2:
        return sweep<2>(pass, super, slot_in_round, part, m);
      case 3:
        return sweep<3>(pass, super, slot_in_round, part, m);
      default:
        return sweep<0>(pass, super, slot_in_round, part, m);
    }
  }
};

int64_t select_directly(const CascadeArgs& args, int64_t q);

// One query's result; 1 when its brackets missed and it was selected directly.
template <int NR>
int64_t resolve(const Cascade<NR>& cascade, int64_t q, int64_t in_round, const Collected* parts,
                const Bracket* brackets, Workspace& w) {
  const CascadePlan& plan = cascade.plan;
  if (collects_all(cascade.args, plan)) {
    w.entries = w.merged;
    cascade.list_all(in_round, w.entries);
  } else if (!settle_levels(plan, parts, cascade.shape.parts, brackets, w)) {
    if (!plan.missed) return select_directly(cascade.args, q);
    plan.missed[q] = 1;
    return 0;
  }
  finish(cascade.args, plan, plan.levels, w, q);
  return 0;
}

template <int NR>
int64_t run(const CascadeArgs& args, const CascadePlan& plan, const Shape& shape) {
  int64_t max_dim = 1, total_dim = 0;
  for (int v = 0; v < args.num_views; ++v) {
    max_dim = args.views[v].dim > max_dim ? args.views[v].dim : max_dim;
    total_dim += args.views[v].dim;
  }
  Arena arena{nullptr, 0};
  SharedMemory::take(arena, plan, shape, total_dim);
  const int64_t shared_bytes = arena.used;
  ThreadMemory::take(arena, args, plan, shape, max_dim);
  const int64_t thread_bytes = arena.used - shared_bytes + 64 * shape.parts;
  char* memory = take_workspace(shared_bytes + round_up(thread_bytes, 64) * shape.threads);
  if (!memory) return -1;
  arena = {memory, 0};
  const SharedMemory shared = SharedMemory::take(arena, plan, shape, total_dim);
  const Cascade<NR> cascade{args, plan, shape, shared, total_dim};
  int64_t missed = 0;

#pragma omp parallel num_threads(shape.threads) if (shape.threads > 1) reduction(+ : missed)
  {
    const FloatEnvironment exact;
    Collected* parts;
    ThreadMemory m;
#pragma omp critical(cpr_arena)
    {
      m = ThreadMemory::take(arena, args, plan, shape, max_dim);
      parts = arena.take<Collected>(shape.parts);
    }
    Workspace w = Workspace::at(m.workspace, plan, shape.parts);
    const int64_t queries = cascade.queries_of_super();
    for (int64_t first = 0; first < shape.supers; first += shape.supers_per_round) {
      const int64_t supers =
          shape.supers - first < shape.supers_per_round ? shape.supers - first : shape.supers_per_round;
#pragma omp for schedule(dynamic)
      for (int64_t s = 0; s < supers; ++s) {
        cascade.pack(first + s, s);
        cascade.start(s);
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
            narrow(plan, pass, parts, shape.parts, brackets, w);
          else
            missed += resolve(cascade, q, i, parts, brackets, w);
        }
      }
    }
  }
  give_back_workspace(memory);
  return missed;
}

// How a call is cut up; where threads share a group of queries, what each collects is less.
Shape shape_of(const CascadeArgs& args, CascadePlan& plan) {
  Shape shape;
  const int64_t panels = (args.num_keys + PANEL - 1) / PANEL;
  shape.threads = args.threads > 1 ? args.threads : 1;
  // wide lists: fewer queries at a time, so that what they collect stays within the round's memory
  const bool narrow_block =
      args.num_queries <= W || List::bytes(plan.rows, plan.list_capacity) * 2 * W > WIDE_BYTES;
  shape.vectors = narrow_block ? 1 : 2;
  shape.width = shape.vectors * W;
  shape.blocks = (args.num_queries + shape.width - 1) / shape.width;
  int64_t key_bytes = 0;
  for (int v = 0; v < args.num_views; ++v)
    key_bytes += args.num_keys * args.views[v].dim * (args.dtype == DType::float32 ? 4 : 2);
  int64_t per_super = (key_bytes > CACHED_KEYS ? WIDE_BYTES : ROUND_BYTES) /
                      (List::bytes(plan.rows, plan.list_capacity) * shape.width);
  per_super = per_super < 1 ? 1 : (per_super > 64 / shape.width ? 64 / shape.width : per_super);
  shape.supers = (shape.blocks + per_super - 1) / per_super;
  const int64_t listed = shape.blocks * shape.width * List::bytes(plan.rows, plan.list_capacity);
  const bool by_turns = shape.supers > 1 && shape.supers <= shape.threads && listed > SHARED_BYTES;
  if (shape.supers <= shape.threads && !by_turns)
    shape.supers = 1;  // threads share the keys, and each reads its part once
  shape.blocks_per_super = (shape.blocks + shape.supers - 1) / shape.supers;  // as even as can be
  const int64_t parts = by_turns ? shape.threads : (shape.threads + shape.supers - 1) / shape.supers;
  shape.parts = static_cast<int>(parts < panels ? parts : panels);
  if (shape.parts > 1)  // parts interleave panels, so they collect alike
    plan.list_capacity = plan.list_capacity / shape.parts + plan.list_capacity / (8 * shape.parts) + PANEL;
  if (plan.levels == 0) plan.list_capacity = round_up(panels, shape.parts) / shape.parts * PANEL;
  const int64_t per_query = shape.parts * Collected::bytes(plan);
  const int64_t fit = ROUND_BYTES * shape.threads / (per_query * shape.blocks_per_super * shape.width);
  shape.supers_per_round = by_turns ? 1 : fit < shape.threads ? shape.threads : fit;
  if (shape.supers_per_round > shape.supers) shape.supers_per_round = shape.supers;
  if (static_cast<int64_t>(shape.threads) > shape.supers * shape.parts * 4)
    shape.threads = static_cast<int>(shape.supers * shape.parts * 4);
  return shape;
}

int64_t cascade(const CascadeArgs& args, const CascadePlan& whole) {
  CascadePlan plan = whole;
  const Shape shape = shape_of(args, plan);
  return shape.vectors == 1 ? run<1>(args, plan, shape) : run<2>(args, plan, shape);
}

CpuPlan told(const CascadeArgs& args, const CascadePlan& whole) {
  CascadePlan plan = whole;
  const Shape shape = shape_of(args, plan);
  return {W,           shape.threads, shape.blocks_per_super * shape.width, shape.supers, shape.parts,
          plan.passes, plan.levels};
}

// The long way for one query: no brackets, every eligible entry collected.
int64_t select_directly(const CascadeArgs& args, int64_t q) {
  const int64_t k = args.keep[args.num_stages - 1];
  View* views = static_cast<View*>(std::malloc(sizeof(View) * static_cast<size_t>(args.num_views)));
  if (!views) return -(int64_t{1} << 40);
  for (int v = 0; v < args.num_views; ++v) {
    views[v] = args.views[v];
    views[v].queries = row_at(views[v].queries, args.dtype, views[v].query_stride, q);
  }
  CascadeArgs one = args;
  one.views = views;
  one.num_queries = 1;
  one.query_ids = args.query_ids ? args.query_ids + q : nullptr;
  one.exclude = args.exclude ? args.exclude + q * args.exclude_stride : nullptr;
  one.indices = args.indices + q * k;
  one.scores = args.scores + q * k;
  one.threads = 1;
  const int64_t status = cascade_topk_exhaustive(one);
  std::free(views);
  return status < 0 ? -(int64_t{1} << 40) : 1;
}

}  // namespace

extern const CpuKernels kernels;
const CpuKernels kernels = {cascade, told};

}  // namespace CPR_ISA_NAMESPACE
}  // namespace cpr
