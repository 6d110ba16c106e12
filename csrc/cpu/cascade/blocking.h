// How a call of cpr::cascade_topk is cut up among threads, and the memory that takes.
#pragma once
#include "../arena.h"
#include "int16_finish.h"
#include "plan.h"

namespace cpr {
namespace CPR_ISA_NAMESPACE {

constexpr int64_t PANEL = 512;  // keys scored and filtered at a time
constexpr int64_t ROW =
    PANEL + 16;  // floats a query's scores take: rows a power of two apart share cache sets
constexpr int64_t WAVE_BYTES =
    4 << 20;  // what a thread's queries may collect at a time, roughly: a level-2 cache
constexpr int64_t WIDE_BYTES =
    10 << 20;  // and where keys come from memory, so that visiting them less often pays
constexpr int64_t SHARED_BYTES =
    14 << 20;  // and at most at a time where threads share the keys: more queries take turns
constexpr int64_t CACHED_KEYS = 16 << 20;  // bytes of keys that stay in a last-level cache

// How a call is cut up: blocks of `width` queries, groups of blocks that share one pass over the keys, and
// waves of groups that are resident at once.
struct Shape {
  int vectors, width;  // width: queries, `vectors` vectors of them
  int64_t blocks, blocks_per_group, groups, groups_per_wave;
  int parts;  // of the keys, for threads that share a group
  int threads;
};

struct ThreadMemory {
  float* wide;         // one tile of keys in float32
  float* scores;       // [slots, queries of a group, ROW]
  float* bias;         // [PANEL] of the panel's keys, where a mix has it
  const float** rows;  // [R]
  int32_t* which;      // [PANEL] keys of a gathered panel
  Eligibility eligible;
  char* workspace;
  int32_t* pairs;  // one tile of keys as pairs; this and what follows: with int16 scores
  float* query;    // a query's row of each view
  Refine refine;
  CodeWorkspace codes;

  static ThreadMemory take(Arena& arena, const CascadeArgs& args, const CascadePlan& plan, const Shape& shape,
                           const Dims& dims) {
    const int64_t slots = args.num_views + plan.mixes, queries = shape.blocks_per_group * shape.width;
    ThreadMemory m;
    m.wide = arena.take<float>(TILE * dims.widest);
    m.scores = arena.take<float>(slots * queries * ROW);
    m.bias = arena.take<float>(plan.biased_mix < 0 ? 0 : PANEL + 16);
    m.rows = arena.take<const float*>(plan.rows);
    m.which = arena.take<int32_t>(PANEL + 16);
    m.eligible = {&args, arena.take<int32_t>(PANEL + 16), arena.take<uint8_t>(PANEL + 16),
                  arena.take<int16_t>(plan.int16_lists ? PANEL + 16 : 0)};
    m.workspace = arena.take<char>(Workspace::bytes(plan, shape.parts));
    if (!plan.int16_scores) return m;
    const int64_t capacity = Workspace::capacity(plan, shape.parts) + W;
    m.pairs = arena.take<int32_t>(TILE * pairs_of(dims.widest));
    m.query = arena.take<float>(dims.total);
    m.refine = {&args, &plan, m.query, arena.take<float>(plan.rows), Gathered::take(arena, dims.widest),
                {},    {},    {}};
    m.refine.places = arena.take<int32_t>(capacity);
    m.refine.near = arena.take<float>(capacity + Gathered::BLOCK);
    m.refine.index = arena.take<int32_t>(capacity);
    if (plan.int16_lists) m.codes = CodeWorkspace::take(arena, plan, shape.parts);
    return m;
  }
};

struct SharedMemory {
  float* packed;                   // per group of the wave: [V][blocks][dim, width]; none with int16 scores
  char* collected;                 // [queries of a wave, parts]
  Bracket* brackets;               // [queries of a wave, L]
  int32_t* pairs;                  // as `packed`; this and what follows: with int16 scores
  float *factor, *length, *error;  // [V, queries of a wave] of each query, see Int16Query
  float* longest;                  // [groups of the wave, parts, V, W] longest keys seen
  float* reference;       // [groups of the wave, V] that keys are scaled by; 0: each by its own length
  uint8_t* uses_int16;    // [groups of the wave] 1: int16 scores serve
  Quantizer* quantizers;  // [queries of a wave, R]; this and what follows: with int16 lists
  float *code_factor, *code_offset;  // [V, queries of a wave] what turns a sum into a code

  static SharedMemory take(Arena& arena, const CascadeArgs& args, const CascadePlan& plan, const Shape& shape,
                           const Dims& dims) {
    const int64_t blocks = shape.groups_per_wave * shape.blocks_per_group, queries = blocks * shape.width;
    SharedMemory m;
    m.packed = arena.take<float>(plan.int16_scores ? 0 : queries * dims.total);
    m.collected = arena.take<char>(queries * shape.parts * Collected::bytes(plan));
    m.brackets = arena.take<Bracket>(queries * (plan.levels ? plan.levels : 1));
    if (!plan.int16_scores) return m;
    m.pairs = arena.take<int32_t>(queries * dims.pairs);
    m.factor = arena.take<float>(args.num_views * queries);
    m.length = arena.take<float>(args.num_views * queries);
    m.error = arena.take<float>(args.num_views * queries);
    m.longest = arena.take<float>(shape.groups_per_wave * shape.parts * args.num_views * W);
    m.reference = arena.take<float>(shape.groups_per_wave * args.num_views);
    m.uses_int16 = arena.take<uint8_t>(shape.groups_per_wave);
    if (!plan.int16_lists) return m;
    m.quantizers = arena.take<Quantizer>(queries * plan.rows);
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
  // wide lists: fewer queries at a time, so that what they collect stays within the wave's memory
  const int64_t list_bytes = List::bytes(plan.rows, Collected::capacity(plan));
  const bool narrow_block = args.num_queries <= W || list_bytes * 2 * W > WIDE_BYTES;
  shape.vectors = narrow_block ? 1 : 2;
  shape.width = shape.vectors * W;
  shape.blocks = (args.num_queries + shape.width - 1) / shape.width;
  int64_t key_bytes = 0;
  for (int v = 0; v < args.num_views; ++v)
    key_bytes += args.num_keys * args.views[v].dim * (args.dtype == DType::float32 ? 4 : 2);
  int64_t per_group = (key_bytes > CACHED_KEYS ? WIDE_BYTES : WAVE_BYTES) / (list_bytes * shape.width);
  per_group = per_group < 1 ? 1 : (per_group > 64 / shape.width ? 64 / shape.width : per_group);
  shape.groups = (shape.blocks + per_group - 1) / per_group;
  const int64_t listed = shape.blocks * shape.width * list_bytes;
  const bool by_turns = shape.groups > 1 && shape.groups <= shape.threads && listed > SHARED_BYTES;
  if (shape.groups <= shape.threads && !by_turns)
    shape.groups = 1;  // threads share the keys, and each reads its part once
  shape.blocks_per_group = (shape.blocks + shape.groups - 1) / shape.groups;  // as even as can be
  const int64_t parts = by_turns ? shape.threads : (shape.threads + shape.groups - 1) / shape.groups;
  shape.parts = static_cast<int>(parts < panels ? parts : panels);
  if (shape.parts > 1)  // parts interleave panels, so they collect equally much
    plan.list_capacity = plan.list_capacity / shape.parts + plan.list_capacity / (8 * shape.parts) + PANEL;
  if (plan.int16_lists) {  // the sample is collected in float32, in the same memory
    const int64_t sample = args.num_keys / plan.pass[0].units, least = 2 * (sample / shape.parts + 2 * PANEL);
    if (plan.list_capacity < least) plan.list_capacity = least;
  }
  if (plan.levels == 0) plan.list_capacity = round_up(panels, shape.parts) / shape.parts * PANEL;
  const int64_t per_query = shape.parts * Collected::bytes(plan);
  const int64_t fit = WAVE_BYTES * shape.threads / (per_query * shape.blocks_per_group * shape.width);
  // as many for every thread
  shape.groups_per_wave = by_turns              ? 1
                          : fit < shape.threads ? shape.threads
                                                : fit / shape.threads * shape.threads;
  if (shape.groups_per_wave > shape.groups) shape.groups_per_wave = shape.groups;
  if (static_cast<int64_t>(shape.threads) > shape.groups * shape.parts * 4)
    shape.threads = static_cast<int>(shape.groups * shape.parts * 4);
  return shape;
}

}  // namespace CPR_ISA_NAMESPACE
}  // namespace cpr
