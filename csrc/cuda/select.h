// Exact selection by a block of threads: the m-th best of a list by threshold, and what survives it. No sort
// of the list, no atomics that decide anything, no buffer that may overflow unnoticed.
//
// A list is kept in index order, so that among equal scores the lower index is the earlier position.
#pragma once
#include "../ranking.h"
#include "team.h"

namespace cpr {

constexpr int SAMPLE = 256;  // entries ranked by comparing all with all; blocks have at least as many threads
constexpr uint32_t CANDIDATES = 3072;  // what a bracket may leave to a closer look
constexpr float SPREAD = 2.2f;         // bracket half-width in standard deviations of the sampled rank
constexpr int SAMPLED_ROUNDS = 10;     // then only the certain way, so that no data can make the search long
constexpr uint32_t EVERY_TIE = ~0u;

struct SelectMemory {
  TeamMemory team;
  uint32_t sample[SAMPLE];
  uint32_t sorted[SAMPLE];
  uint32_t rank[SAMPLE];
  alignas(16) uint32_t candidates[2][CANDIDATES];
  uint32_t collected;
};
static_assert(sizeof(SelectMemory) <= 30 * 1024,
              "leaves 192 KB of a 227 KB block to the list of 16,384 entries");

// Entries of one query: `rows` rows of ascending keys, then a row of indices; each row `pitch` long, pitch %
// 4 == 0.
struct Entries {
  uint32_t* memory;
  int64_t pitch;
  uint32_t n;
  CPR_DEVICE uint32_t* row(int r) const { return memory + r * pitch; }
};

// What a stage keeps: all above `key`, and the first `ties` of exactly that key.
struct Threshold {
  uint32_t key;
  uint32_t ties;
};

struct alignas(16) Four {
  uint32_t of[4];
};

// A thread's four neighbouring keys from position `first`, a multiple of 4; 0, which is no score's key,
// beyond n.
CPR_DEVICE Four load_four(const uint32_t* row, uint32_t first, uint32_t n) {
  if (first + 3 < n) return *reinterpret_cast<const Four*>(row + first);
  Four four;
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i) four.of[i] = first + i < n ? row[first + i] : 0u;
  return four;
}

// rank[i]: how many of the n <= SAMPLE keys of memory.sample rank before the i-th; sorted: the keys in that
// order.
CPR_DEVICE void rank_sample(Team& team, SelectMemory& memory, uint32_t n) {
  const int entry = team.thread % SAMPLE, part = team.thread / SAMPLE, parts = team.threads / SAMPLE;
  if (part == 0) memory.rank[entry] = 0;
  sync_block();
  if (static_cast<uint32_t>(entry) < n) {
    const uint32_t key = memory.sample[entry], begin = n * part / parts, end = n * (part + 1) / parts;
    uint32_t before = 0;
    for (uint32_t i = begin; i < end; ++i) {
      const uint32_t other = memory.sample[i];
      before += other > key || (other == key && i < static_cast<uint32_t>(entry));
    }
    shared_add(&memory.rank[entry], before);
  }
  sync_block();
  if (part == 0 && static_cast<uint32_t>(entry) < n) memory.sorted[memory.rank[entry]] = memory.sample[entry];
  sync_block();
}

// Exactly the m-th best of at most SAMPLE keys.
CPR_DEVICE Threshold threshold_of_few(Team& team, SelectMemory& memory, const uint32_t* keys, uint32_t n,
                                      uint32_t m) {
  if (static_cast<uint32_t>(team.thread) < n) memory.sample[team.thread] = keys[team.thread];
  sync_block();
  rank_sample(team, memory, n);
  const uint32_t key = memory.sorted[m - 1];
  uint32_t above[1] = {static_cast<uint32_t>(team.thread) < m && memory.sorted[team.thread] != key};
  const bool all = m == n || memory.sorted[m] != key;
  team.sum(above);
  return {key, all ? EVERY_TIE : m - above[0]};
}

// Keys at or above, and above, two pivots; those strictly between go to `to`, one in `thin` of them, while
// they fit.
struct Counts {
  uint32_t above_high, from_high, above_low, from_low;
};
CPR_DEVICE Counts count_around(Team& team, SelectMemory& memory, const uint32_t* keys, uint32_t n,
                               uint32_t high, uint32_t low, uint32_t thin, uint32_t* to) {
  if (team.thread == 0) memory.collected = 0;
  sync_block();
  uint32_t counts[4] = {0, 0, 0, 0};
  const uint32_t before_lane = (1u << team.lane) - 1u, tile = static_cast<uint32_t>(team.threads) * 4;
  for (uint32_t base = 0; base < n; base += tile) {
    const uint32_t first = base + static_cast<uint32_t>(team.thread) * 4;
    const Four four = load_four(keys, first, n);
    uint32_t mask[4], total = 0;
    bool picked[4];
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t key = four.of[i];  // a 0 beyond n is not above any pivot
      counts[0] += key > high;
      counts[1] += key >= high;
      counts[2] += key > low;
      counts[3] += key >= low;
      picked[i] = key > low && key < high && (thin == 1 || ((first + i) * 2654435761u >> 8) % thin == 0);
      mask[i] = ballot(picked[i]);
      total += static_cast<uint32_t>(count_bits(mask[i]));
    }
    if (total == 0) continue;  // alike for the whole warp
    uint32_t place = 0;
    if (team.lane == 0) place = shared_add(&memory.collected, total);
    place = shuffle(place, 0);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t at = place + static_cast<uint32_t>(count_bits(mask[i] & before_lane));
      if (picked[i] && at < CANDIDATES) to[at] = four.of[i];
      place += static_cast<uint32_t>(count_bits(mask[i]));
    }
  }
  team.sum(counts);  // its barrier also ends the collecting
  return {counts[0], counts[1], counts[2], counts[3]};
}

// Two keys of the sorted sample between which the m-th of n almost surely lies; 0 and ~0 where the sample
// ends.
CPR_DEVICE void bracket(const SelectMemory& memory, uint32_t n, uint32_t m, uint32_t* high, uint32_t* low) {
  const float place = static_cast<float>(m) * (static_cast<float>(SAMPLE) / static_cast<float>(n));
  const float inner = place * (1.0f - place / SAMPLE);
  const float spread = 1.0f + SPREAD * sqrtf((inner > 0.0f ? inner : 0.0f) + 0.25f);
  const int high_at = static_cast<int>(floorf(place - spread)) - 1,
            low_at = static_cast<int>(floorf(place + spread));
  if (high_at >= 0) *high = memory.sorted[high_at < SAMPLE ? high_at : SAMPLE - 1];
  if (low_at < SAMPLE) *low = memory.sorted[low_at < 0 ? 0 : low_at];
}

// The m-th best (1 <= m <= n) of a list of keys. Which pivots are tried depends on the order in which warps
// collect; what comes out does not: it is the m-th best however it is found. Ends because a round without a
// sample to go by cuts the interval of possible keys to two thirds or less.
CPR_DEVICE Threshold mth_best(Team& team, SelectMemory& memory, const uint32_t* keys, uint32_t n,
                              uint32_t m) {
  uint32_t floor_key = 0, ceiling = ~0u;  // the m-th best key lies strictly between
  uint32_t inside = n, rank = m;          // keys strictly between, and which of them is wanted
  uint32_t sampled = 0;  // keys of the interval at hand in `pool`, a fair sample; 0: take from the list
  const uint32_t* pool = keys;
  bool fresh = true;  // the interval holds the whole list
  int side = 0;
  for (int round = 0; n > SAMPLE; ++round) {
    uint32_t high = ceiling, low = floor_key;
    const bool by_sample = round < SAMPLED_ROUNDS && (fresh || sampled >= SAMPLE);
    if (by_sample) {
      const uint64_t size = fresh ? n : sampled;
      if (team.thread < SAMPLE)
        memory.sample[team.thread] = pool[static_cast<uint64_t>(team.thread) * size / SAMPLE];
      sync_block();
      rank_sample(team, memory, SAMPLE);
      bracket(memory, inside, rank, &high, &low);
    } else {
      const uint32_t third = (ceiling - floor_key) / 3;
      high = ceiling - (third ? third : 1);
      low = floor_key + (third ? third : 1);
    }
    fresh = false;
    const uint32_t expected = inside / 7;  // of a bracket around the middle, the widest there is
    const uint32_t thin = by_sample && expected > CANDIDATES * 3 / 4 ? 1 + expected / (CANDIDATES / 2) : 1;
    uint32_t* to = memory.candidates[side];
    const Counts c = count_around(team, memory, keys, n, high, low, thin, to);
    const uint32_t collected = memory.collected;
    sync_block();  // everyone has read `collected` before anyone starts over
    sampled = 0;
    if (m <= c.above_high) {
      floor_key = high;
      inside = c.above_high;  // at most: those at or above the ceiling are few
      rank = m;
    } else if (m <= c.from_high) {
      return {high, m == c.from_high ? EVERY_TIE : m - c.above_high};
    } else if (m <= c.above_low) {
      inside = c.above_low - c.from_high;
      rank = m - c.from_high;
      floor_key = low;
      ceiling = high;
      pool = to;
      side ^= 1;
      if (thin == 1 && inside <= CANDIDATES) {  // all of them are at hand: go on with these alone
        keys = to;
        n = inside;
        m = rank;
        fresh = true;
      } else {
        sampled = collected < CANDIDATES ? collected : CANDIDATES;
      }
    } else if (m <= c.from_low) {
      return {low, m == c.from_low ? EVERY_TIE : m - c.above_low};
    } else {
      ceiling = low;
      inside = n - c.from_low;
      rank = m - c.from_low;
    }
  }
  return threshold_of_few(team, memory, keys, n, m);
}

// Entries of `from` that the threshold on row `judge` keeps, in order, to `to`: another list, or `from`
// itself, for what a pass writes lies at or before what it has read, and a barrier lies between.
CPR_DEVICE uint32_t keep_within(Team& team, const Entries& from, const Entries& to, int rows, int judge,
                                Threshold cut) {
  uint32_t kept = 0, tied = 0;
  const uint32_t tile = static_cast<uint32_t>(team.threads) * 4;
  for (uint32_t base = 0; base < from.n; base += tile) {
    const uint32_t first = base + static_cast<uint32_t>(team.thread) * 4;
    const Four judged = load_four(from.row(judge), first, from.n);
    uint32_t stays = 0, equal = 0;
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      const bool real = first + i < from.n;
      stays |= static_cast<uint32_t>(real && judged.of[i] > cut.key) << i;
      equal |= static_cast<uint32_t>(real && judged.of[i] == cut.key) << i;
    }
    if (cut.ties == EVERY_TIE) {
      stays |= equal;
    } else {
      uint32_t in_tile;
      uint32_t seen = tied + team.sum_before(static_cast<uint32_t>(count_bits(equal)), &in_tile);
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i)
        if (equal >> i & 1u) stays |= static_cast<uint32_t>(seen++ < cut.ties) << i;
      tied += in_tile;
    }
    uint32_t in_tile = 0, place = 0;
    for (int group = 0; group <= rows;
         group += 3) {  // rows and the indices, three at a time through registers
      Four held[3];
#pragma unroll
      for (int r = 0; r < 3; ++r)
        if (group + r <= rows) held[r] = load_four(from.row(group + r), first, from.n);
      if (group == 0)
        place = kept + team.sum_before(static_cast<uint32_t>(count_bits(stays)), &in_tile);
      else
        sync_block();
#pragma unroll
      for (int r = 0; r < 3; ++r) {
        if (group + r > rows) continue;
        uint32_t at = place;
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i)
          if (stays >> i & 1u) to.row(group + r)[at++] = held[r].of[i];
      }
    }
    kept += in_tile;
  }
  sync_block();  // what was written can be read
  return kept;
}

// Sort `size` (a power of two) keys ascending, wherever they lie. For results too long to rank by comparing
// all.
CPR_DEVICE void sort_keys(Team& team, uint64_t* keys, uint32_t size) {
  for (uint32_t run = 2; run <= size; run <<= 1)
    for (uint32_t step = run >> 1; step > 0; step >>= 1) {
      sync_block();
      for (uint32_t i = static_cast<uint32_t>(team.thread); i < size / 2;
           i += static_cast<uint32_t>(team.threads)) {
        const uint32_t a = 2 * i - (i & (step - 1)), b = a + step;
        const bool ascending = (a & run) == 0;
        const uint64_t low = keys[a], high = keys[b];
        if ((low > high) == ascending) keys[a] = high, keys[b] = low;
      }
    }
  sync_block();
}

}  // namespace cpr
