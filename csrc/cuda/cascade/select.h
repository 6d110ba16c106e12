// Exact selection by a block of threads: the m-th best of a list by threshold, and what survives it. No sort
// of the list, no atomics that decide anything, no buffer that may overflow unnoticed.
//
// A list is kept in index order, so that among equal scores the lower index is the earlier position.
#pragma once
#include "../../bracket.h"
#include "team.h"

namespace cpr {

constexpr int SAMPLE = 256;            // keys that one warp sorts in its registers
constexpr uint32_t CANDIDATES = 1792;  // what a bracket may leave to a closer look
constexpr float SPREAD = 2.2f;         // bracket half-width in standard deviations of the sampled rank
constexpr int SAMPLED_ROUNDS = 10;     // then only the certain way, so that no data can make the search long
constexpr uint32_t EVERY_TIE = ~0u;

// What a stage keeps: all above `key`, and the first `ties` of exactly that key.
struct Threshold {
  uint32_t key;
  uint32_t ties;
};

struct SelectMemory {
  TeamMemory team;
  alignas(16) uint32_t sorted[SAMPLE];
  alignas(16) uint32_t candidates[2][CANDIDATES];
  uint32_t collected[2];  // in turn: a barrier lies between two uses of one
  Threshold found;
};
// 228 KB of a multiprocessor of 9.0, of which each block takes 1 KB more: 113 KB a block
static_assert((sizeof(SelectMemory) + 127) / 128 * 128 + 3 * 8192 * 4 <= 113 * 1024,
              "two blocks with lists of 8,192 entries, two rows and an index, share a multiprocessor");

// Entries of one query: `rows` rows of ascending keys, then a row of indices; each row `pitch` long, pitch %
// 4 == 0.
struct Entries {
  uint32_t* memory;
  uint32_t pitch;
  uint32_t n;
  CPR_DEVICE uint32_t* row(int r) const { return memory + static_cast<int64_t>(r) * pitch; }
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

// Keys that lie in a row, in shared or global memory.
struct ListKeys {
  static constexpr bool LACKS = false;  // does a key of 0 stand for an entry that is not there?
  const uint32_t* row;
  CPR_DEVICE Four four(uint32_t first, uint32_t n) const { return load_four(row, first, n); }
  CPR_DEVICE uint32_t one(uint32_t at) const { return row[at]; }
};

CPR_DEVICE uint32_t greater(uint32_t a, uint32_t b) { return a > b ? a : b; }
CPR_DEVICE uint32_t lesser(uint32_t a, uint32_t b) { return a < b ? a : b; }

// Neighbours at distance `STEP` within a lane's eight put in order.
template <int STEP>
CPR_DEVICE void order_within(uint32_t (&key)[8], bool falling) {
#pragma unroll
  for (int r = 0; r < 8; ++r) {
    if (r & STEP) continue;
    const uint32_t more = greater(key[r], key[r | STEP]), less = lesser(key[r], key[r | STEP]);
    key[r] = falling ? more : less;
    key[r | STEP] = falling ? less : more;
  }
}

// A warp's 256 keys, the highest first: lane holds those at 8 lane, 8 lane + 1, ... (a bitonic network).
CPR_DEVICE void sort_sample(uint32_t (&key)[8], int lane) {
#pragma unroll
  for (int r = 0; r < 8; r += 2) {  // runs of 2, of 4, of 8
    const uint32_t more = greater(key[r], key[r + 1]), less = lesser(key[r], key[r + 1]);
    key[r] = r & 2 ? less : more;
    key[r + 1] = r & 2 ? more : less;
  }
#pragma unroll
  for (int step = 2; step > 0; step >>= 1)
#pragma unroll
    for (int r = 0; r < 8; ++r) {
      if (r & step) continue;
      const uint32_t more = greater(key[r], key[r | step]), less = lesser(key[r], key[r | step]);
      key[r] = r & 4 ? less : more;
      key[r | step] = r & 4 ? more : less;
    }
  order_within<4>(key, (lane & 1) == 0);
  order_within<2>(key, (lane & 1) == 0);
  order_within<1>(key, (lane & 1) == 0);
#pragma unroll 1
  for (int lanes = 2; lanes <= 32; lanes <<= 1) {  // runs of 16 to 256
    const bool falling = (lane & lanes) == 0;
#pragma unroll 1
    for (int step = lanes >> 1; step > 0; step >>= 1) {
      const bool takes_more = ((lane & step) == 0) == falling;
#pragma unroll
      for (int r = 0; r < 8; ++r) {
        const uint32_t other = shuffle_xor(key[r], step);
        key[r] = takes_more ? greater(key[r], other) : lesser(key[r], other);
      }
    }
    order_within<4>(key, falling);
    order_within<2>(key, falling);
    order_within<1>(key, falling);
  }
}

// 256 of `size` keys, evenly spread, to `memory.sorted`; a barrier later one warp puts them in order there.
template <class Keys>
CPR_DEVICE void draw_sample(const Team& team, SelectMemory& memory, const Keys& keys, uint32_t size) {
  if (team.thread < SAMPLE)
    memory.sorted[team.thread] =
        keys.one(static_cast<uint32_t>(static_cast<uint64_t>(team.thread) * size / SAMPLE));
}
CPR_DEVICE void sort_drawn(SelectMemory& memory, int lane) {
  uint32_t key[8];
#pragma unroll
  for (int r = 0; r < 8; ++r) key[r] = memory.sorted[lane * 8 + r];
  sort_sample(key, lane);
#pragma unroll
  for (int r = 0; r < 8; ++r) memory.sorted[lane * 8 + r] = key[r];
}

// Exactly the m-th best of at most SAMPLE keys. One barrier.
CPR_DEVICE Threshold threshold_of_few(Team& team, SelectMemory& memory, const uint32_t* keys, uint32_t n,
                                      uint32_t m) {
  if (team.warp == 0) {
    uint32_t key[8];
#pragma unroll
    for (uint32_t r = 0; r < 8; ++r) {
      const uint32_t at = static_cast<uint32_t>(team.lane) * 8 + r;
      key[r] = at < n ? keys[at] : 0u;
    }
    sort_sample(key, team.lane);
#pragma unroll
    for (int r = 0; r < 8; ++r) memory.sorted[team.lane * 8 + r] = key[r];
    sync_warp();
    const uint32_t wanted = memory.sorted[m - 1];
    uint32_t above = 0, from = 0;
#pragma unroll
    for (int r = 0; r < 8; ++r) above += key[r] > wanted, from += key[r] >= wanted;
    above = warp_sum(above);
    from = warp_sum(from);
    if (team.lane == 0) memory.found = {wanted, m == from ? EVERY_TIE : m - above};
  }
  sync_block();
  return memory.found;
}

// Where a count pass puts what it collects.
struct Room {
  uint32_t* place;
  uint32_t size;
};

// Keys at or above, and above, two pivots, and all that are there; those strictly between go to `to`, one in
// `thin` of them, while they fit.
struct Counts {
  uint32_t above_high, from_high, above_low, from_low, there;
};
template <class Keys>
CPR_DEVICE Counts count_around(Team& team, uint32_t* collected, const Keys& keys, uint32_t n, uint32_t high,
                               uint32_t low, uint32_t thin, Room to) {
  uint32_t counts[Keys::LACKS ? 5 : 4] = {};
  const uint32_t before_lane = (1u << team.lane) - 1u, tile = static_cast<uint32_t>(team.threads) * 4;
  const uint32_t most = ~0u / thin;  // of a position's hash, for it to be picked
#pragma unroll 1
  for (uint32_t base = 0; base < n; base += tile) {
    const uint32_t first = base + static_cast<uint32_t>(team.thread) * 4;
    const Four four = keys.four(first, n);
    uint32_t mask[4], total = 0;
    bool picked[4];
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t key = four.of[i];  // a 0 beyond n is not above any pivot
      counts[0] += key > high;
      counts[1] += key >= high;
      counts[2] += key > low;
      counts[3] += key >= low;
      if constexpr (Keys::LACKS) counts[4] += key != 0u;
      picked[i] = key > low && key < high && (first + i) * 2654435761u <= most;
      mask[i] = ballot(picked[i]);
      total += static_cast<uint32_t>(count_bits(mask[i]));
    }
    if (total == 0) continue;  // the same for the whole warp
    uint32_t place = 0;
    if (team.lane == 0) place = shared_add(collected, total);
    place = shuffle(place, 0);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t at = place + static_cast<uint32_t>(count_bits(mask[i] & before_lane));
      if (picked[i] && at < to.size) to.place[at] = four.of[i];
      place += static_cast<uint32_t>(count_bits(mask[i]));
    }
  }
  team.sum(counts);  // its barrier also ends the collecting
  return {counts[0], counts[1], counts[2], counts[3], Keys::LACKS ? counts[Keys::LACKS ? 4 : 0] : n};
}

// Two keys of the sorted sample between which the m-th of n almost surely lies, the interval's own ends where
// the sample ends; returns how many of the n are expected between.
CPR_DEVICE uint32_t bracket(const SelectMemory& memory, uint32_t n, uint32_t m, uint32_t* high,
                            uint32_t* low) {
  const Places at = bracket_places<SAMPLE>(static_cast<float>(m), static_cast<float>(n), SPREAD);
  if (at.high >= 0) *high = memory.sorted[at.high];
  if (at.low < SAMPLE) *low = memory.sorted[at.low];
  const int between = at.low > at.high ? at.low - at.high : 1;
  return static_cast<uint32_t>(static_cast<uint64_t>(n) * static_cast<uint32_t>(between) / SAMPLE);
}

// What a search has found: the threshold, or, when n > 0, a list in which to look on for the m-th best.
struct Search {
  Threshold cut;
  const uint32_t* keys;
  uint32_t n, m;
};
CPR_DEVICE Search found(uint32_t key, uint32_t ties) { return {{key, ties}, nullptr, 0, 0}; }

// The m-th best (m >= 1, and m <= n for a list) of n keys; {0, EVERY_TIE}, which keeps all that are there,
// when no more than m are. Which pivots are tried depends on the order in which warps collect; what comes out
// does not: it is the m-th best however it is found. Ends because a round without a sample to go by cuts the
// interval of possible keys to two thirds or less. Three barriers a round.
//
// Rounds over keys that lack some collect into `room`, and end with a list there; a list's own rounds use
// memory.candidates.
template <class Keys>
CPR_DEVICE Search mth_best(Team& team, SelectMemory& memory, Keys keys, uint32_t n, uint32_t m, Room room) {
  uint32_t floor_key = 0, ceiling = ~0u;  // the m-th best key lies strictly between
  uint32_t inside = n, rank = m;          // keys strictly between (at most), and which of them is wanted
  uint32_t sampled = 0;  // keys of the interval at hand in `pool`, a fair sample; 0: take from the list
  const uint32_t* pool = nullptr;
  bool fresh = true;  // the interval holds the whole list
  int side = 0;
  if (Keys::LACKS && n == 0) return found(0, EVERY_TIE);
  for (int round = 0; Keys::LACKS || n > SAMPLE; ++round) {
    uint32_t high = ceiling, low = floor_key;
    const bool by_sample = round < SAMPLED_ROUNDS && (fresh || sampled >= SAMPLE);
    uint32_t* collected = &memory.collected[team.collecting];
    team.collecting ^= 1;
    if (team.thread == 0) *collected = 0;
    if (by_sample) {
      if (fresh)
        draw_sample(team, memory, keys, n);
      else
        draw_sample(team, memory, ListKeys{pool}, sampled);
      sync_block();
      if (team.warp == 0) sort_drawn(memory, team.lane);
    }
    sync_block();
    uint32_t expected = 0;
    if (by_sample) {
      expected = bracket(memory, inside, rank, &high, &low);
    } else {
      const uint32_t third = (ceiling - floor_key) / 3;
      high = ceiling - (third ? third : 1);
      low = floor_key + (third ? third : 1);
    }
    fresh = false;
    const Room to = Keys::LACKS ? room : Room{memory.candidates[side], CANDIDATES};
    const uint32_t thin = expected > to.size / 4 * 3 ? 1 + expected / (to.size / 2) : 1;
    const Counts c = count_around(team, collected, keys, n, high, low, thin, to);
    sampled = 0;
    if (Keys::LACKS && m >= c.there) return found(0, EVERY_TIE);
    if (m <= c.above_high) {
      floor_key = high;
      inside = c.above_high;  // at most: those at or above the ceiling are few
      rank = m;
    } else if (m <= c.from_high) {
      return found(high, m == c.from_high ? EVERY_TIE : m - c.above_high);
    } else if (m <= c.above_low) {
      inside = c.above_low - c.from_high;
      rank = m - c.from_high;
      floor_key = low;
      ceiling = high;
      pool = to.place;
      side ^= 1;
      if (thin == 1 && inside <= to.size) {  // all of them are at hand: go on with these alone
        if constexpr (Keys::LACKS) {
          return {{}, to.place, inside, rank};
        } else {
          keys = {to.place};
          n = inside;
          m = rank;
          fresh = true;
        }
      } else {
        sampled = lesser(*collected, to.size);
      }
    } else if (m <= c.from_low) {
      return found(low, m == c.from_low ? EVERY_TIE : m - c.above_low);
    } else {
      ceiling = low;
      inside = n - c.from_low;
      rank = m - c.from_low;
    }
  }
  if constexpr (Keys::LACKS)
    return found(0, EVERY_TIE);  // not reached
  else
    return {threshold_of_few(team, memory, keys.row, n, m), nullptr, 0, 0};
}

// What has been kept of the tiles so far, four neighbouring entries a thread, and how many tied ones came.
struct Taking {
  uint32_t kept = 0, tied = 0;

  // The place of the thread's first entry that stays. `stays` gains those of `equal` that are among the first
  // ties. Counts of both kinds share a sum: a tile has 4,096 entries at most. One barrier.
  CPR_DEVICE uint32_t next(Team& team, const Threshold& cut, uint32_t equal, uint32_t& stays) {
    uint32_t in_tile;
    if (cut.ties == EVERY_TIE) {
      stays |= equal;
      const uint32_t place =
          kept + team.sum_before(static_cast<uint32_t>(count_bits(stays)), &in_tile);
      kept += in_tile;
      return place;
    }
    const uint32_t both =
        static_cast<uint32_t>(count_bits(stays)) + (static_cast<uint32_t>(count_bits(equal)) << 16);
    const uint32_t before = team.sum_before(both, &in_tile);
    const uint32_t ties_kept = lesser(tied, cut.ties);
    uint32_t seen = tied + (before >> 16);
    const uint32_t place = kept + (before & 0xFFFFu) + lesser(seen, cut.ties) - ties_kept;
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i)
      if (equal >> i & 1u) stays |= static_cast<uint32_t>(seen++ < cut.ties) << i;
    tied += in_tile >> 16;
    kept += (in_tile & 0xFFFFu) + lesser(tied, cut.ties) - ties_kept;
    return place;
  }
};

// Entries of `from` that the threshold on row `judge` keeps, in order, to `to`: another list, or `from`
// itself, for what a pass writes lies at or before what it has read, and a barrier lies between.
CPR_DEVICE uint32_t keep_within(Team& team, const Entries& from, const Entries& to, int rows, int judge,
                                Threshold cut) {
  Taking taking;
  const uint32_t tile = static_cast<uint32_t>(team.threads) * 4;
#pragma unroll 1
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
    uint32_t place = 0;
    for (int group = 0; group <= rows;
         group += 3) {  // rows and the indices, three at a time through registers
      Four held[3];
#pragma unroll
      for (int r = 0; r < 3; ++r)
        if (group + r <= rows) held[r] = load_four(from.row(group + r), first, from.n);
      if (group == 0)
        place = taking.next(team, cut, equal, stays);
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
  }
  sync_block();  // what was written can be read
  return taking.kept;
}

}  // namespace cpr
