// How a call of cpr::cascade_topk is cut up among threads, and the memory that takes.
#pragma once
#include "../arena.h"
#include "plan.h"
#include "int16_finish.h"

namespace cpr {
namespace CPR_ISA_NAMESPACE {

constexpr int64_t PANEL = 512;  // keys scored and filtered at a time
constexpr int64_t ROW =
    PANEL + 16;  // floats a query's scores take: rows a power of two apart share cache sets
constexpr int64_t ROUND_BYTES =
    4 << 20;  // what a thread's queries may collect at a time, roughly: a level-2 cache
constexpr int64_t WIDE_BYTES =
    10 << 20;  // and where keys come from memory, so that visiting them less often pays
constexpr int64_t SHARED_BYTES =
    14 << 20;  // and at most at a time where threads share the keys: more queries take turns
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
  int32_t* pairs;  // one tile of keys as pairs; this and what follows: where scores are coarse
  float* query;    // a query's row of each view
  Refine refine;
  CodeWorkspace codes;

  static ThreadMemory take(Arena& arena, const CascadeArgs& args, const CascadePlan& plan, const Shape& shape,
                           const Dims& dims) {
    const int64_t slots = args.num_views + plan.mixes, queries = shape.blocks_per_super * shape.width;
    ThreadMemory m;
    m.wide = arena.take<float>(TILE * dims.widest);
    m.scores = arena.take<float>(slots * queries * ROW);
    m.rows = arena.take<const float*>(plan.rows);
    m.which = arena.take<int32_t>(PANEL + 16);
    m.eligible = {&args, arena.take<int32_t>(PANEL + 16), arena.take<uint8_t>(PANEL + 16),
                  arena.take<int16_t>(plan.coded ? PANEL + 16 : 0)};
    m.workspace = arena.take<char>(Workspace::bytes(plan, shape.parts));
    if (!plan.coarse) return m;
    const int64_t capacity = Workspace::capacity(plan, shape.parts) + W;
    m.pairs = arena.take<int32_t>(TILE * pairs_of(dims.widest));
    m.query = arena.take<float>(dims.total);
    m.refine = {&args, &plan, m.query, arena.take<float>(plan.rows), Gathered::take(arena, dims.widest),
                {},    {},    {}};
    m.refine.places = arena.take<int32_t>(capacity);
    m.refine.near = arena.take<float>(capacity + Gathered::BLOCK);
    m.refine.index = arena.take<int32_t>(capacity);
    if (plan.coded) m.codes = CodeWorkspace::take(arena, plan, shape.parts);
    return m;
  }
};

struct SharedMemory {
  float* packed;      // per super of the round: [V][blocks][dim, width]; none where scores are coarse
  char* collected;    // [queries of a round, parts]
  Bracket* brackets;  // [queries of a round, L]
  int32_t* pairs;     // as `packed`; this and what follows: where scores are coarse
  float *factor, *length, *error;  // [V, queries of a round] of each query, see CoarseQuery
  float* longest;                  // [supers of the round, parts, V, W] longest keys seen
  float* reference;  // [supers of the round, V] that keys are scaled by; 0: each by its own length
  uint8_t* coarse;   // [supers of the round] 1: coarse scores serve
  Grid* grids;       // [queries of a round, R]; this and what follows: where scores are collected in codes
  float *code_factor, *code_offset;  // [V, queries of a round] what turns a sum into a code

  static SharedMemory take(Arena& arena, const CascadeArgs& args, const CascadePlan& plan, const Shape& shape,
                           const Dims& dims) {
    const int64_t blocks = shape.supers_per_round * shape.blocks_per_super, queries = blocks * shape.width;
    SharedMemory m;
    m.packed = arena.take<float>(plan.coarse ? 0 : queries * dims.total);
    m.collected = arena.take<char>(queries * shape.parts * Collected::bytes(plan));
    m.brackets = arena.take<Bracket>(queries * (plan.levels ? plan.levels : 1));
    if (!plan.coarse) return m;
    m.pairs = arena.take<int32_t>(queries * dims.pairs);
    m.factor = arena.take<float>(args.num_views * queries);
    m.length = arena.take<float>(args.num_views * queries);
    m.error = arena.take<float>(args.num_views * queries);
    m.longest = arena.take<float>(shape.supers_per_round * shape.parts * args.num_views * W);
    m.reference = arena.take<float>(shape.supers_per_round * args.num_views);
    m.coarse = arena.take<uint8_t>(shape.supers_per_round);
    if (!plan.coded) return m;
    m.grids = arena.take<Grid>(queries * plan.rows);
    m.code_factor = arena.take<float>(args.num_views * queries);
    m.code_offset = arena.take<float>(args.num_views * queries);
    return m;
  }
};

// How a call is cut up; where threads share a group of queries, what each collects is less.
inline Shape shape_of(const CascadeArgs& args, CascadePlan& plan) {
  Shape shape;
  const int64_t panels = (args.num_keys + PANEL - 1) / PANEL;
  shape.threads = args.threads > 1 ? args.threads : 1;
  // wide lists: fewer queries at a time, so that what they collect stays within the round's memory
  const int64_t list_bytes = List::bytes(plan.rows, Collected::capacity(plan));
  const bool narrow_block = args.num_queries <= W || list_bytes * 2 * W > WIDE_BYTES;
  shape.vectors = narrow_block ? 1 : 2;
  shape.width = shape.vectors * W;
  shape.blocks = (args.num_queries + shape.width - 1) / shape.width;
  int64_t key_bytes = 0;
  for (int v = 0; v < args.num_views; ++v)
    key_bytes += args.num_keys * args.views[v].dim * (args.dtype == DType::float32 ? 4 : 2);
  int64_t per_super = (key_bytes > CACHED_KEYS ? WIDE_BYTES : ROUND_BYTES) / (list_bytes * shape.width);
  per_super = per_super < 1 ? 1 : (per_super > 64 / shape.width ? 64 / shape.width : per_super);
  shape.supers = (shape.blocks + per_super - 1) / per_super;
  const int64_t listed = shape.blocks * shape.width * list_bytes;
  const bool by_turns = shape.supers > 1 && shape.supers <= shape.threads && listed > SHARED_BYTES;
  if (shape.supers <= shape.threads && !by_turns)
    shape.supers = 1;  // threads share the keys, and each reads its part once
  shape.blocks_per_super = (shape.blocks + shape.supers - 1) / shape.supers;  // as even as can be
  const int64_t parts = by_turns ? shape.threads : (shape.threads + shape.supers - 1) / shape.supers;
  shape.parts = static_cast<int>(parts < panels ? parts : panels);
  if (shape.parts > 1)  // parts interleave panels, so they collect alike
    plan.list_capacity = plan.list_capacity / shape.parts + plan.list_capacity / (8 * shape.parts) + PANEL;
  if (plan.coded) {  // the sample is collected in float32, in the same memory
    const int64_t sample = args.num_keys / plan.pass[0].units, least = 2 * (sample / shape.parts + 2 * PANEL);
    if (plan.list_capacity < least) plan.list_capacity = least;
  }
  if (plan.levels == 0) plan.list_capacity = round_up(panels, shape.parts) / shape.parts * PANEL;
  const int64_t per_query = shape.parts * Collected::bytes(plan);
  const int64_t fit = ROUND_BYTES * shape.threads / (per_query * shape.blocks_per_super * shape.width);
  // as many for every thread
  shape.supers_per_round = by_turns              ? 1
                           : fit < shape.threads ? shape.threads
                                                 : fit / shape.threads * shape.threads;
  if (shape.supers_per_round > shape.supers) shape.supers_per_round = shape.supers;
  if (static_cast<int64_t>(shape.threads) > shape.supers * shape.parts * 4)
    shape.threads = static_cast<int>(shape.supers * shape.parts * 4);
  return shape;
}

}  // namespace CPR_ISA_NAMESPACE
}  // namespace cpr
