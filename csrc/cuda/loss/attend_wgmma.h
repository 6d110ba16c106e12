// The sums of attend.h on compute capability 9.0, for up to 128 features: each of two warpgroups holds 64
// rows in shared memory while keys stream past both, 128 at a time, by copies in bulk. Both products are
// formed by wgmma: scores of rows and keys that lie in shared memory, and weights, from registers, by the
// same keys. A warp beside the two copies, and says what is known of the keys.
#pragma once
#include "../device/hopper.h"
#include "attend_wgmma_weights.h"

namespace cpr {

constexpr int ATTEND_GROUPS = 2, ATTEND_GROUP_THREADS = 128;
// A third warpgroup copies, by its first warp, and leaves its registers to the two: 3 x 168 are 24 + 2 x 240.
constexpr int ATTEND_WGMMA_THREADS = (ATTEND_GROUPS + 1) * ATTEND_GROUP_THREADS;
constexpr int ATTEND_REGISTERS = 240, COPYING_REGISTERS = 24;
constexpr int ATTEND_BLOCKS = ATTEND_WGMMA_DEPTHS / PACKED;            // of 64 features
constexpr int ATTEND_BOX = PACKED * PACKED * 2;                        // bytes of 64 rows by 64 features
constexpr int ATTEND_PLANE = ATTEND_WGMMA_KEYS / PACKED * ATTEND_BOX;  // of a step's keys by 64 features

template <int PLANES>
struct AttendSteps {
  static constexpr int STAGES = PLANES == 2 ? 2 : 4;
  static constexpr int KEYS = ATTEND_BLOCKS * PLANES * ATTEND_PLANE;  // bytes of a stage
  static constexpr int ROWS = ATTEND_BLOCKS * PLANES * ATTEND_BOX;    // of a warpgroup
};

struct AttendBarriers {
  uint64_t full[4], empty[4], rows;
};

// A block's shared memory: [stages][64 features][planes][128 lines], [groups][64 features][planes][64 lines].
template <int PLANES>
struct AttendShared {
  using Steps = AttendSteps<PLANES>;
  static constexpr int SWIZZLED_BEGIN = 1024;
  static constexpr int BYTES = SWIZZLED_BEGIN + Steps::STAGES * Steps::KEYS + ATTEND_GROUPS * Steps::ROWS +
                               Steps::STAGES * static_cast<int>(sizeof(StepFacts)) +
                               static_cast<int>(sizeof(AttendBarriers));
  static_assert(BYTES <= ATTEND_WGMMA_BYTES, "as the layout counts it");
  unsigned char *keys, *rows;
  StepFacts* facts;
  AttendBarriers* barriers;

  CPR_DEVICE explicit AttendShared(unsigned char* shared) {
    keys = shared + (SWIZZLED_BEGIN - shared_address(shared) % SWIZZLED_BEGIN) % SWIZZLED_BEGIN;
    rows = keys + Steps::STAGES * Steps::KEYS;
    facts = reinterpret_cast<StepFacts*>(rows + ATTEND_GROUPS * Steps::ROWS);
    barriers = reinterpret_cast<AttendBarriers*>(facts + Steps::STAGES);
  }
};

// The keys [begin, end) of a block.
struct KeySpan {
  uint32_t begin, end;
};

// Planes packed in blocks of 64 rows (split_rows.h), both of them, whichever are used: where block `block` of
// 64 features of 64 rows is.
CPR_DEVICE const unsigned char* box_of(const Operand& operand, uint32_t row, int block) {
  const int64_t box = static_cast<int64_t>(row / PACKED) * ATTEND_BLOCKS + block;
  return reinterpret_cast<const unsigned char*>(operand.planes) + box * 2 * ATTEND_BOX;
}

// The copying warp: a block's rows once, then its keys, as far ahead as there are stages.
template <int PLANES>
CPR_DEVICE void copy_steps(const AttendArgs& args, const KeySpan& span, int groups,
                           const AttendShared<PLANES>& shared) {
  using Steps = AttendSteps<PLANES>;
  constexpr uint32_t BYTES = PLANES * ATTEND_BOX;
  const bool copies = (thread_index() & 31) == 0;
  if (copies) {
    uint64_t* rows = &shared.barriers->rows;
    barrier_arrive_expecting(rows, static_cast<uint32_t>(groups) * Steps::ROWS);
    for (int g = 0; g < groups; ++g)
      for (int b = 0; b < ATTEND_BLOCKS; ++b)
        copy_bulk(shared.rows + g * Steps::ROWS + b * BYTES,
                  box_of(args.rows, (block_index() * ATTEND_GROUPS + static_cast<uint32_t>(g)) * PACKED, b),
                  BYTES, rows);
  }
  uint32_t stage = 0, round = 0;
#pragma unroll 1
  for (uint32_t first = span.begin; first < span.end; first += ATTEND_WGMMA_KEYS) {
    if (round > 0) barrier_wait(&shared.barriers->empty[stage], (round - 1) & 1);
    uint64_t* full = &shared.barriers->full[stage];
    if (copies) {
      unsigned char* keys = shared.keys + stage * Steps::KEYS;
      barrier_arrive_expecting(full, Steps::KEYS);
#pragma unroll
      for (int b = 0; b < ATTEND_BLOCKS; ++b)
#pragma unroll
        for (int p = 0; p < PLANES; ++p)
#pragma unroll
          for (int half = 0; half < ATTEND_PLANE / ATTEND_BOX; ++half)
            copy_bulk(keys + (b * PLANES + p) * ATTEND_PLANE + half * ATTEND_BOX,
                      box_of(args.columns, first + static_cast<uint32_t>(half * PACKED), b) + p * ATTEND_BOX,
                      ATTEND_BOX, full);
    }
    write_facts(args, first, span.end, shared.facts[stage]);
    barrier_arrive(full);  // each lane shows what it wrote
    if (++stage == Steps::STAGES) stage = 0, ++round;
  }
}

// Products of 64 rows and a step's keys, small ones first; `rows` and `keys` are where they are in shared
// memory.
template <int PLANES>
CPR_DEVICE void multiply_step(float (&scores)[16][4], const unsigned char* rows, const unsigned char* keys) {
  constexpr uint64_t LOW_ROWS = ATTEND_BOX >> 4, LOW_KEYS = ATTEND_PLANE >> 4;
  const uint64_t a0 = swizzled_rows(shared_address(rows)), b0 = swizzled_rows(shared_address(keys));
  wgmma_hold(scores);
  sync_warp();  // the instructions want whole warps
  wgmma_fence();
#pragma unroll
  for (int part = 0; part < PLANES; ++part)
#pragma unroll
    for (int k = 0; k < ATTEND_WGMMA_DEPTHS / 16; ++k) {
      const int block = k / (PACKED / 16), step = k % (PACKED / 16);
      const uint64_t a = a0 + block * PLANES * LOW_ROWS + step * NEXT_16_FEATURES,
                     b = b0 + block * PLANES * LOW_KEYS + step * NEXT_16_FEATURES;
      if (part + 1 < PLANES) {
        wgmma_multiply<false>(scores, a, b + LOW_KEYS, k > 0);
        wgmma_multiply<false>(scores, a + LOW_ROWS, b, true);
      } else {
        wgmma_multiply<false>(scores, a, b, PLANES == 2 || k > 0);
      }
    }
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_hold(scores);
}

// sums = sums * shrink + weights x keys.
template <int PLANES>
CPR_DEVICE void add_step(float (&sums)[16][4], const float (&weights)[16][4], const float (&shrink)[2],
                         const unsigned char* keys) {
  if (ballot(shrink[0] != 1.0f || shrink[1] != 1.0f) != 0) {
#pragma unroll
    for (int n = 0; n < 16; ++n)
#pragma unroll
      for (int c = 0; c < 4; ++c) sums[n][c] *= shrink[c / 2];
  }
  uint32_t high[8][4], low[8][4];
#pragma unroll
  for (int t = 0; t < 8; ++t)  // 16 keys: two pieces of scores are one left operand
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const float first = weights[2 * t + r / 2][r % 2 * 2], second = weights[2 * t + r / 2][r % 2 * 2 + 1];
      float high_first, high_second;
      high[t][r] = to_halves(first, second);
      from_halves(high[t][r], high_first, high_second);
      low[t][r] = to_halves(first - high_first, second - high_second);
    }
  constexpr uint64_t LOW_KEYS = ATTEND_PLANE >> 4;
  const uint64_t b0 = swizzled_columns(shared_address(keys), PLANES * ATTEND_PLANE);
  wgmma_hold(sums);
  wgmma_hold(high);
  wgmma_hold(low);
  sync_warp();
  wgmma_fence();
#pragma unroll
  for (int t = 0; t < 8; ++t) {
    const uint64_t b = b0 + t * NEXT_16_ROWS;
    wgmma_add_columns(sums, low[t], b);
    if constexpr (PLANES == 2) wgmma_add_columns(sums, high[t], b + LOW_KEYS);
    wgmma_add_columns(sums, high[t], b);
  }
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_hold(sums);
}

// What a lane has summed over a part of the keys, to where the next kernel reads it.
CPR_DEVICE void write_group_rows(const AttendArgs& args, const RowSums& rows, const float (&sums)[16][4],
                                 uint32_t row0, uint32_t part) {
  const int lane = thread_index() & 31;
  const float to_scores = 1.0f / (args.scale * LOG2_E);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float whole = row_sum(rows.mass[half]);
    const uint32_t row = row0 + static_cast<uint32_t>(8 * half);
    if (row >= args.num_rows) continue;
    const int64_t at = static_cast<int64_t>(part) * args.num_rows + row;
    if (lane % 4 == 0) {
      args.top[at] = rows.top[half] * to_scores;
      args.mass[at] = whole;
    }
    if (!args.attended) continue;
    const float root = fast_exp2(rows.excess[half] * 0.5f);  // twice, for it may be beyond float32
    float* to = args.attended + at * args.dim;
#pragma unroll
    for (int n = 0; n < 16; ++n) {
      const int d = n * 8 + lane % 4 * 2;
      const Two pair = {{sums[n][2 * half] * root * root, sums[n][2 * half + 1] * root * root}};
      if (args.dim % 2 == 0 && d < args.dim) {
        *reinterpret_cast<Two*>(to + d) = pair;
      } else {
        if (d < args.dim) to[d] = pair.of[0];
        if (d + 1 < args.dim) to[d + 1] = pair.of[1];
      }
    }
  }
}

// One warpgroup: its rows against all of the block's keys, with statistics of the logits or without.
template <int PLANES, int MODE>
CPR_DEVICE void attend_steps(const AttendArgs& args, const KeySpan& span,
                             const AttendShared<PLANES>& shared) {
  using Steps = AttendSteps<PLANES>;
  const int lane = thread_index() & 31, group = thread_index() / ATTEND_GROUP_THREADS;
  const uint32_t row0 = (block_index() * ATTEND_GROUPS + static_cast<uint32_t>(group)) * PACKED +
                        static_cast<uint32_t>(thread_index() / 32 % 4 * 16 + lane / 4);
  const StepRows rows(args, row0);
  bool all_usual = ballot(!usual(rows.exponent[0]) || !usual(rows.exponent[1])) == 0;
  float of_row[2], sums[16][4] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half)
    of_row[half] = all_usual ? power_of_two(rows.exponent[half]) * (args.scale * LOG2_E) : 0.0f;
  RowSums row_sums;
  Ranks<MODE> ranks(args.ranks, args.num_rows, row0);
  barrier_wait(&shared.barriers->rows, 0);

  uint32_t stage = 0, round = 0;
#pragma unroll 1
  for (uint32_t first = span.begin; first < span.end; first += ATTEND_WGMMA_KEYS) {
    const unsigned char* keys = shared.keys + stage * Steps::KEYS;
    const StepFacts& facts = shared.facts[stage];
    float weights[16][4] = {}, shrink[2];
    barrier_wait(&shared.barriers->full[stage], round & 1);
    multiply_step<PLANES>(weights, shared.rows + group * Steps::ROWS, keys);
    all_usual = all_usual && facts.unusual == 0;  // for good: there may be an excess from then on
    if (!all_usual) form_scores(facts, rows, weights);
    if constexpr (Ranks<MODE>::COUNTS) rank_step(args, facts, rows, first, all_usual, ranks, weights);
    if (all_usual)
      weigh_usual(args, facts, rows, of_row, row_sums, weights, shrink);
    else
      weigh_any(args, facts, rows, row_sums, weights, shrink);
    if (args.attended) add_step<PLANES>(sums, weights, shrink, keys);
    sync_warp();  // all of the warp have read the stage
    if (lane == 0) barrier_arrive(&shared.barriers->empty[stage]);
    if (++stage == Steps::STAGES) stage = 0, ++round;
  }
  write_group_rows(args, row_sums, sums, row0, block_index_y());
  ranks.write(args.ranks, args.num_rows, row0, block_index_y());
}

// Grid: x over two times 64 rows, y over parts of the keys.
template <int PLANES, int MODE>
CPR_DEVICE void attend_by_wgmma(const AttendArgs& args, unsigned char* memory) {
  const AttendShared<PLANES> shared(memory);
  const uint32_t begin = block_index_y() * args.part_columns, end = begin + args.part_columns;
  const KeySpan span{begin, end < args.num_columns ? end : args.num_columns};
  const bool second = (block_index() * ATTEND_GROUPS + 1) * PACKED < args.num_rows;
  const int groups = second ? ATTEND_GROUPS : 1, group = thread_index() / ATTEND_GROUP_THREADS;
  if (thread_index() == 0) {
    barrier_init(&shared.barriers->rows, 1);
    for (int i = 0; i < AttendSteps<PLANES>::STAGES; ++i) {
      barrier_init(&shared.barriers->full[i], 33);  // the copying warp, and its copies
      barrier_init(&shared.barriers->empty[i], static_cast<uint32_t>(groups * ATTEND_GROUP_THREADS / 32));
    }
    barriers_are_made();
  }
  sync_block();
  if (group == ATTEND_GROUPS) {
    release_registers<COPYING_REGISTERS>();
    if (thread_index() / 32 == ATTEND_GROUPS * ATTEND_GROUP_THREADS / 32)
      copy_steps<PLANES>(args, span, groups, shared);
  } else if (group < groups) {
    take_registers<ATTEND_REGISTERS>();
    attend_steps<PLANES, MODE>(args, span, shared);
  }
}

}  // namespace cpr
