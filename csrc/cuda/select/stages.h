// All stages of one query, by one block: from its rows of scores to its positives.
#pragma once
#include "by_codes.h"

namespace cpr {

static_assert(SORTED_IN_SHARED * 8 <= sizeof(SelectMemory::bins), "the keys to sort fit there");
static_assert((sizeof(SelectMemory) + 127) / 128 * 128 == SELECT_MEMORY_BYTES, "as the layout counts it");

// The entries of the ring that the cut keeps, but for candidates. Two rows pass through registers where
// HOLDS, others are read again.
template <bool HOLDS, class Args>
CPR_DEVICE void keep_from_ring(const Team& team, SelectMemory& memory, const Ring<Args>& ring,
                               const Entries& to) {
  constexpr int GROUP = HOLDS ? 2 : 1;
  const uint32_t n = ring.size(), step = static_cast<uint32_t>(team.threads) * 4;
  const int rows = ring.args.rows, judge = ring.judge, second = ring.beside;
#pragma unroll 1
  for (uint32_t base = 0; base < n; base += step * GROUP) {
    const uint32_t first = base + static_cast<uint32_t>(team.thread()) * 4;
    Four judged[GROUP], other[GROUP];
#pragma unroll
    for (int g = 0; g < GROUP; ++g) {
      judged[g] = absent_four();
      if (first + g * step < n) judged[g] = ring.judged(first + g * step, other[g]);
    }
    const Chosen chosen = choose(team, memory, ring, rows, judged, first, step);
    if constexpr (HOLDS) {
      SharedWords own_place(to.row(judge) + chosen.place), other_place(to.row(second) + chosen.place),
          index_place(to.row(rows) + chosen.place);
#pragma unroll
      for (int s = 0; s < 4 * GROUP; ++s)
        store_marked(chosen.stays, 1u << s, other_place, other[s / 4].of[s % 4], own_place,
                     judged[s / 4].of[s % 4], index_place, first + s / 4 * step + s % 4);
      if (rows <= 2) continue;
    }
#pragma unroll 1
    for (int r = 0; r <= rows; ++r) {
      uint32_t at = chosen.place;
#pragma unroll 1
      for (uint32_t left = chosen.stays; left; left &= left - 1) {
        const uint32_t s = lowest_bit(left);
        to.row(r)[at++] = ring.word(r, first + s / 4 * step + s % 4);
      }
    }
  }
}

// What decides stages, known when a kernel is compiled. Where codes decide too little, scores do.
enum class Selection {
  scores,          // whatever the schedule
  codes,           // every call has lists of codes; results are short
  codes_if_there,  // only some calls have; results are short
};

// The survivors in order of rank, then padding. SHORT: at most RANKED.
template <bool SHORT>
CPR_DEVICE void write_result(const Team& team, SelectMemory& memory, const SelectArgs& args, uint32_t query,
                             const List& list) {
  const uint32_t* scores = list.entries.row(args.row_of_stage[args.stages - 1]);
  const uint32_t* index = list.entries.row(args.rows);
  int64_t* indices = args.indices + query * args.k;
  float* best = args.best + query * args.k;
  const uint32_t n = list.n, thread = static_cast<uint32_t>(team.thread()),
                 threads = static_cast<uint32_t>(team.threads);
  if (SHORT || n <= RANKED) {
#pragma unroll 1
    for (uint32_t i = thread; i < n; i += threads) {
      const uint32_t rank = rank_among(scores, index, n, i);
      indices[rank] = index[i];
      best[rank] = plus(float_of(scores[i]), 0.0f);  // never -0
    }
  } else {
    uint32_t size = RANKED;
    while (size < n) size <<= 1;
    uint64_t* sorted = size <= SORTED_IN_SHARED ? reinterpret_cast<uint64_t*>(memory.bins)
                                                : args.sorts + query * args.sort_size;
    for (uint32_t i = thread; i < size; i += threads)
      sorted[i] =
          i < n ? static_cast<uint64_t>(~ascending_key(float_of(scores[i]))) << 32 | index[i] : ~uint64_t{0};
    sort_keys(team, sorted, size);
    for (uint32_t i = thread; i < n; i += threads) {
      indices[i] = static_cast<int64_t>(sorted[i] & 0xFFFFFFFFu);
      best[i] = score_of_key(sorted[i]);
    }
  }
#pragma unroll 1
  for (int64_t i = int64_t{n} + thread; i < args.k; i += threads) {
    indices[i] = -1;
    best[i] = float_of(0xFF800000u);
  }
}

// All stages of a query, whose entries are in the ring, then in a list. Bins are zeros before. SHORT: what
// codes leave undecided, seldom, so that the code is short: lists are in shared memory.
template <bool SHORT, class Args>
CPR_DEVICE List select_by_scores(Team& team, SelectMemory& memory, const Args& args, uint32_t query,
                                 unsigned char* shared) {
  const Entries in_shared{reinterpret_cast<uint32_t*>(shared + SELECT_MEMORY_BYTES), args.shared_entries};
  const Entries in_global{args.lists + query * (args.rows + int64_t{1}) * args.longest, args.longest};
  if (team.thread() == 0) {
    memory.appended = memory.kept = 0;
    memory.cut = {float_of(0xFF800000u), float_of(0xFF800000u), true, ~0u, 0};  // keeps all that are there
  }
  uint32_t n = args.num_keys;
  bool shared_list = false, careful = SHORT || args.rows > 2 || args.first == args.stages;
  int stage = args.first;
  do {
    const bool in_ring = stage == args.first;  // the first list is still to be made
    const bool cuts = stage < args.stages;     // false where every stage keeps all keys
    const int judge = cuts ? args.row_of_stage[stage] : 0;
    const uint32_t keep = cuts ? args.keep[stage] : n;
    if (!in_ring && keep >= n) continue;
    if (team.thread() == 0) {
      memory.appended = memory.kept = 0;
      memory.round.what = cuts ? Count::scores : Count::nothing;
      memory.round.below = (n + 3) / 4 * 4 - keep;
    }
    if (in_ring) team.sync();
    const auto list = [&](const Entries& entries) { return List{entries, n, args.rows, judge}; };
    for (Count what = cuts ? Count::scores : Count::nothing; what != Count::nothing;
         what = memory.round.what) {
      if (in_ring)
        count_bins(team, memory, Ring(args, query, judge, careful), what);
      else if (SHORT || shared_list)
        count_bins(team, memory, list(in_shared), what);
      else
        count_bins(team, memory, list(in_global), what);
      team.sync();
      sum_segments(team, memory);
      team.sync();
      if (team.warp() == 0) narrow(memory, judge, args.num_keys, team.lane());
      team.sync();
      clear_bins(team, memory);
      if (memory.round.what != Count::nothing) team.sync();
    }
    const bool fits = SHORT || keep <= args.shared_entries;
    const Entries to{fits ? in_shared.memory : in_global.memory, fits ? in_shared.pitch : in_global.pitch};
    if (in_ring && fits)
      keep_from_ring<!SHORT>(team, memory, Ring(args, query, judge, true), in_shared);
    else if (in_ring)
      keep_from_ring<false>(team, memory, Ring(args, query, judge, true), in_global);
    else if (SHORT || shared_list)
      keep_from_list<!SHORT>(team, memory, list(in_shared), in_shared);
    else
      keep_from_list<false>(team, memory, list(in_global), to);
    team.sync();
    n = add_candidates(team, memory, to, args.rows, judge);
    shared_list = fits;
    team.sync();                            // what was written can be read
    if (in_ring && n < keep && !careful) {  // some entries that were counted are absent by the other row
      careful = true;
      n = args.num_keys;
      --stage;
      continue;
    }
    if (fits && n <= FEW_ENTRIES && team.threads > FEW_THREADS) {
      team.threads = FEW_THREADS;
      if (team.thread() >= team.threads) break;
    }
  } while (++stage < args.stages);
  return {shared_list ? in_shared : in_global, n, args.rows, 0};
}

// All stages of a query, by the first `threads` of a block; by codes, PAIRS of them a thread and row.
template <Selection BY, int PAIRS, class Args>
CPR_DEVICE void select_query(const Args& args, uint32_t query, int threads, unsigned char* shared) {
  constexpr bool SHORT = BY != Selection::scores;
  SelectMemory& memory = *reinterpret_cast<SelectMemory*>(shared);
  Team team{threads};
  clear_bins(team, memory);
  mix_rows(team, args, query);
  find_ranges(team, memory, Ring(args, query, 0, false));
  List list;
  bool found = false;
  if constexpr (BY != Selection::scores)
    if (BY == Selection::codes || args.coded_entries > 0) {
      if constexpr (BY == Selection::codes) assume(args.rows <= 2);
      team.sync();
      list = select_by_codes<PAIRS>(team, memory, args, query, shared + SELECT_MEMORY_BYTES);
      sync_all_of(threads);
      found = !reinterpret_cast<const CodeMemory*>(memory.candidates)->failed;
      if (!found) {
        team.threads = threads;
        team.sync();  // all know it
        clear_bins(team, memory);
      }
    }
  if (!found) list = select_by_scores<SHORT>(team, memory, args, query, shared);
  if (team.thread() < team.threads) write_result<SHORT>(team, memory, args, query, list);
}

}  // namespace cpr
