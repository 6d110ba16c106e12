// All stages of one query, by one block: from its rows of scores to its positives.
#pragma once
#include "select.h"

namespace cpr {

constexpr int MAX_ROWS = 8;
constexpr int MAX_STAGES = 32;
constexpr uint32_t SORTED_IN_SHARED = 2048;  // longest result sorted where the candidates were
static_assert(SORTED_IN_SHARED * 8 <= sizeof(SelectMemory::candidates), "the keys to sort fit there");

struct SelectArgs {
  const float* scores;  // [views][queries, pitch], NaN where an entry may never be selected
  int64_t view_stride, pitch;
  int num_views, rows, stages;
  float weights[MAX_ROWS * 8];  // [rows, num_views]
  uint8_t row_of_stage[MAX_STAGES];
  uint32_t keep[MAX_STAGES];  // at most num_keys
  uint32_t num_keys, num_queries;
  uint32_t* lists;  // [queries][rows + 1, pitch], null when shared memory holds the whole list
  uint64_t* sorts;  // [queries][sort_size], null when results are short
  int64_t sort_size;
  uint32_t shared_entries;  // what the list in shared memory holds, a multiple of 4
  int64_t k;
  int64_t* indices;  // out [queries, k]
  float* best;       // out [queries, k]
};

inline int64_t select_shared_bytes(int rows, uint32_t entries) {
  return static_cast<int64_t>((sizeof(SelectMemory) + 127) / 128 * 128) + int64_t{rows + 1} * entries * 4;
}

// Keys of judging row `row` at four neighbouring positions: views weighted and added in order, every step
// rounded; 0 for NaN and beyond the end.
CPR_DEVICE Four row_keys(const SelectArgs& args, const float* scores, int row, uint32_t first) {
  float total[4];
  bool started = false;
  for (int v = 0; v < args.num_views; ++v) {
    const float weight = args.weights[row * args.num_views + v];
    if (weight == 0.0f) continue;
    const Four four =
        load_four(reinterpret_cast<const uint32_t*>(scores + v * args.view_stride), first, args.num_keys);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float term = product(float_of(four.of[i]), weight);
      total[i] = started ? plus(total[i], term) : term;
    }
    started = true;
  }
  Four keys;
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i)
    keys.of[i] = started && first + i < args.num_keys && total[i] == total[i] ? ascending_key(total[i]) : 0u;
  return keys;
}

// The eligible entries become the first list; returns how many they are.
CPR_DEVICE uint32_t take_eligible(Team& team, const SelectArgs& args, const float* scores,
                                  const Entries& to) {
  constexpr int HELD = 2;  // rows kept in registers over the barrier (64 a thread); more are formed twice
  uint32_t taken = 0;
  const uint32_t tile = static_cast<uint32_t>(team.threads) * 4;
  for (uint32_t base = 0; base < args.num_keys; base += tile) {
    const uint32_t first = base + static_cast<uint32_t>(team.thread) * 4;
    uint32_t alive = 15u, in_tile;
    Four held[HELD];
    const auto look = [&](const Four& keys) {
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i)
        if (keys.of[i] == 0u) alive &= ~(1u << i);
    };
#pragma unroll
    for (int r = 0; r < HELD; ++r)
      if (r < args.rows) {
        held[r] = row_keys(args, scores, r, first);
        look(held[r]);
      }
    for (int r = HELD; r < args.rows; ++r) look(row_keys(args, scores, r, first));
    const uint32_t place = taken + team.sum_before(static_cast<uint32_t>(count_bits(alive)), &in_tile);
    const auto write = [&](int r, const Four& keys) {
      uint32_t at = place;
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i)
        if (alive >> i & 1u) to.row(r)[at++] = keys.of[i];
    };
#pragma unroll
    for (int r = 0; r < HELD; ++r)
      if (r < args.rows) write(r, held[r]);
    for (int r = HELD; r < args.rows; ++r) write(r, row_keys(args, scores, r, first));
    write(args.rows, Four{{first, first + 1, first + 2, first + 3}});
    taken += in_tile;
  }
  sync_block();
  return taken;
}

// The survivors in order of rank, then padding.
CPR_DEVICE void write_result(Team& team, SelectMemory& memory, const SelectArgs& args, uint32_t query,
                             const Entries& list) {
  const uint32_t* keys = list.row(args.row_of_stage[args.stages - 1]);
  const uint32_t* index = list.row(args.rows);
  int64_t* indices = args.indices + query * args.k;
  float* best = args.best + query * args.k;
  const uint32_t n = list.n, thread = static_cast<uint32_t>(team.thread),
                 threads = static_cast<uint32_t>(team.threads);
  if (n <= SAMPLE) {
    if (thread < n) memory.sample[thread] = keys[thread];
    sync_block();
    rank_sample(team, memory, n);
    if (thread < n) {
      indices[memory.rank[thread]] = index[thread];
      best[memory.rank[thread]] = score_of_ascending(keys[thread]);
    }
  } else {
    uint32_t size = SAMPLE;
    while (size < n) size <<= 1;
    uint64_t* sorted = size <= SORTED_IN_SHARED ? reinterpret_cast<uint64_t*>(memory.candidates)
                                                : args.sorts + query * args.sort_size;
    for (uint32_t i = thread; i < size; i += threads)
      sorted[i] = i < n ? static_cast<uint64_t>(~keys[i]) << 32 | index[i] : ~uint64_t{0};
    sort_keys(team, sorted, size);
    for (uint32_t i = thread; i < n; i += threads) {
      indices[i] = static_cast<int64_t>(sorted[i] & 0xFFFFFFFFu);
      best[i] = score_of_key(sorted[i]);
    }
  }
  for (int64_t i = int64_t{n} + thread; i < args.k; i += threads) {
    indices[i] = -1;
    best[i] = float_of(0xFF800000u);
  }
}

CPR_DEVICE void select_query(const SelectArgs& args, uint32_t query, unsigned char* shared) {
  SelectMemory& memory = *reinterpret_cast<SelectMemory*>(shared);
  uint32_t* in_shared = reinterpret_cast<uint32_t*>(shared + (sizeof(SelectMemory) + 127) / 128 * 128);
  Team team = Team::here(&memory.team);
  const bool fits = args.num_keys <= args.shared_entries;
  Entries list{in_shared, args.shared_entries, 0};
  if (!fits) list = {args.lists + query * (args.rows + 1) * args.pitch, args.pitch, 0};
  list.n = take_eligible(team, args, args.scores + query * args.pitch, list);
  for (int s = 0; s < args.stages; ++s) {
    const uint32_t keep = args.keep[s];
    if (keep >= list.n) continue;
    const int judge = args.row_of_stage[s];
    const Threshold cut = mth_best(team, memory, list.row(judge), list.n, keep);
    Entries to = list;
    if (list.memory != in_shared && keep <= args.shared_entries) to = {in_shared, args.shared_entries, 0};
    to.n = keep_within(team, list, to, args.rows, judge, cut);
    list = to;
  }
  sync_block();  // whatever the stages left in shared memory has been read
  write_result(team, memory, args, query, list);
  sync_block();  // the next query of this block may begin
}

}  // namespace cpr
