// All stages of one query, by one block: from its rows of scores to its positives.
#pragma once
#include "layout.h"
#include "select.h"

namespace cpr {

static_assert(SORTED_IN_SHARED * 8 <= sizeof(SelectMemory::candidates), "the keys to sort fit there");
static_assert((sizeof(SelectMemory) + 127) / 128 * 128 == SELECT_MEMORY_BYTES, "as the layout counts it");

struct SelectArgs : Weightings {
  const float* scores;  // [views][queries, pitch], NaN where an entry may never be selected
  int64_t view_stride, pitch;
  const float* key_bias;  // of the weighting `biased`: [num_keys], or [queries, pitch]; on 16 bytes
  bool bias_a_query;      // the latter
  uint32_t num_keys, num_queries;
  uint32_t longest;  // of the lists: what the first stage keeps, a multiple of 4
  uint32_t* lists;   // [queries][rows + 1, longest], null when shared memory holds the longest list
  uint64_t* sorts;   // [queries][sort_size], null when results are short
  int64_t sort_size;
  uint32_t shared_entries;  // what the list in shared memory holds, a multiple of 4
  int64_t k;
  int64_t* indices;  // out [queries, k]
  float* best;       // out [queries, k]
};

// The numbers at four neighbouring positions of a row, NaN beyond the end.
CPR_DEVICE Four four_of(const SelectArgs& args, const float* numbers, uint32_t first) {
  const uint32_t* row = reinterpret_cast<const uint32_t*>(numbers);
  if (first + 3 < args.num_keys) return *reinterpret_cast<const Four*>(row + first);
  Four four;
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i) four.of[i] = first + i < args.num_keys ? row[first + i] : 0x7FC00000u;
  return four;
}

// What weighting `row` gives four neighbouring positions: views weighted and added in order, then the bias,
// every step rounded.
CPR_DEVICE Four row_scores(const SelectArgs& args, const float* scores, int row, uint32_t first) {
  if (args.plain[row] >= 0) return four_of(args, scores + args.plain[row] * args.view_stride, first);
  Four total{};
  bool started = false;
  const int terms = args.num_views + static_cast<int>(row == args.biased);
#pragma unroll 1
  for (int v = 0; v < terms; ++v) {
    const float* numbers = scores + v * args.view_stride;
    float weight = 1.0f;
    if (v < args.num_views)
      weight = args.weights[row * args.num_views + v];
    else
      numbers = args.key_bias + (args.bias_a_query ? scores - args.scores : 0);
    if (weight == 0.0f) continue;
    const Four four = four_of(args, numbers, first);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float term = product(float_of(four.of[i]), weight);
      total.of[i] = bits_of(started ? plus(float_of(total.of[i]), term) : term);
    }
    started = true;
  }
  return total;
}

CPR_DEVICE bool is_number(uint32_t bits) { return (bits & 0x7FFFFFFFu) <= 0x7F800000u; }

// Keys of four scores; 0 for NaN.
CPR_DEVICE Four keys_of(const Four& scores) {
  Four keys;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    keys.of[i] = is_number(scores.of[i]) ? ascending_key(float_of(scores.of[i])) : 0u;
  return keys;
}

// Keys of one weighting as the ring holds them: 0 for an entry that is NaN by some weighting.
struct RingKeys {
  static constexpr bool LACKS = true;
  const SelectArgs& args;
  const float* scores;  // of the query
  int judge;
  CPR_DEVICE Four four(uint32_t first, uint32_t) const {
    Four keys = keys_of(row_scores(args, scores, judge, first));
#pragma unroll 1
    for (int r = 0; r < args.rows; ++r) {
      if (r == judge) continue;
      const Four other = row_scores(args, scores, r, first);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (!is_number(other.of[i])) keys.of[i] = 0u;
    }
    return keys;
  }
  CPR_DEVICE uint32_t one(uint32_t at) const {
    const Four near = four(at & ~3u, args.num_keys);
    return at & 2u ? (at & 1u ? near.of[3] : near.of[2]) : (at & 1u ? near.of[1] : near.of[0]);
  }
};

// The first list, in order, from the ring: the entries that every row can judge and that the threshold on row
// `judge` keeps.
CPR_DEVICE uint32_t keep_from_ring(Team& team, const SelectArgs& args, const float* scores, int judge,
                                   Threshold cut, const Entries& to) {
  constexpr int HELD = 2;  // rows kept in registers over the barrier (64 a thread); more are formed twice
  Taking taking;
  const uint32_t tile = static_cast<uint32_t>(team.threads) * 4;
#pragma unroll 1
  for (uint32_t base = 0; base < args.num_keys; base += tile) {
    const uint32_t first = base + static_cast<uint32_t>(team.thread) * 4;
    uint32_t there = 15u, above = 0, equal = 0;
    Four held[HELD];
    const auto look = [&](int r, const Four& keys) {
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        if (keys.of[i] == 0u) there &= ~(1u << i);
        if (r != judge) continue;
        above |= static_cast<uint32_t>(keys.of[i] > cut.key) << i;
        equal |= static_cast<uint32_t>(keys.of[i] == cut.key) << i;
      }
    };
#pragma unroll
    for (int r = 0; r < HELD; ++r)
      if (r < args.rows) {
        held[r] = keys_of(row_scores(args, scores, r, first));
        look(r, held[r]);
      }
#pragma unroll 1
    for (int r = HELD; r < args.rows; ++r) look(r, keys_of(row_scores(args, scores, r, first)));
    uint32_t stays = above & there;
    const uint32_t place = taking.next(team, cut, equal & there, stays);
    const auto write = [&](int r, const Four& keys) {
      uint32_t at = place;
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i)
        if (stays >> i & 1u) to.row(r)[at++] = keys.of[i];
    };
#pragma unroll
    for (int r = 0; r < HELD; ++r)
      if (r < args.rows) write(r, held[r]);
#pragma unroll 1
    for (int r = HELD; r < args.rows; ++r) write(r, keys_of(row_scores(args, scores, r, first)));
    write(args.rows, Four{{first, first + 1, first + 2, first + 3}});
  }
  sync_block();
  return taking.kept;
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
    if (thread < n) memory.sorted[thread] = keys[thread];
    sync_block();
    if (thread < n) {
      uint32_t rank = 0;  // how many rank before this one
      for (uint32_t i = 0; i < n; ++i)
        rank += memory.sorted[i] > keys[thread] || (memory.sorted[i] == keys[thread] && i < thread);
      indices[rank] = index[thread];
      best[rank] = score_of_ascending(keys[thread]);
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
  uint32_t* in_shared = reinterpret_cast<uint32_t*>(shared + SELECT_MEMORY_BYTES);
  Team team = Team::here(&memory.team);
  const float* scores = args.scores + query * args.pitch;
  Entries list{in_shared, args.shared_entries, 0};
  if (args.longest > args.shared_entries)
    list = {args.lists + query * (args.rows + int64_t{1}) * args.longest, args.longest, 0};
  int stage = args.first;
  do {
    const bool in_ring = stage == args.first;  // the first list is still to be made
    const bool cuts = stage < args.stages;
    const int judge = cuts ? args.row_of_stage[stage] : 0;
    const uint32_t keep = cuts ? args.keep[stage] : 0;
    if (!in_ring && keep >= list.n) continue;
    Search search = found(0, EVERY_TIE);
    if (!in_ring) {
      search = {{}, list.row(judge), list.n, keep};
    } else if (cuts) {
      const uint32_t free = args.shared_entries * static_cast<uint32_t>(args.rows + 1);  // no list there yet
      const Room room = free > CANDIDATES ? Room{in_shared, free} : Room{memory.candidates[1], CANDIDATES};
      search = mth_best(team, memory, RingKeys{args, scores, judge}, args.num_keys, keep, room);
    }
    if (search.n) search = mth_best(team, memory, ListKeys{search.keys}, search.n, search.m, Room{});
    if (in_ring) {
      list.n = keep_from_ring(team, args, scores, judge, search.cut, list);
    } else {
      Entries to = list;
      if (list.memory != in_shared && keep <= args.shared_entries) to = {in_shared, args.shared_entries, 0};
      to.n = keep_within(team, list, to, args.rows, judge, search.cut);
      list = to;
    }
  } while (++stage < args.stages);
  sync_block();  // whatever the stages left in shared memory has been read
  write_result(team, memory, args, query, list);
  sync_block();  // the next query of this block may begin
}

}  // namespace cpr
