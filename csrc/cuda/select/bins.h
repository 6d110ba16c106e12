// Exact selection by a block of threads: which entries of a list are its m best. Entries are counted in bins
// of their scores, then of the interval of one bin, until few entries are left there to be ranked one by one.
// Counts are exact, so no data makes the search wrong or endless: an interval of the 2^32 keys is a single
// key after three rounds, and entries of one key are counted by their indices.
//
// A list is in no particular order: each entry has its index beside its scores.
#pragma once
#include <cfloat>

#include "../device/device_limits.h"
#include "team.h"

namespace cpr {

constexpr uint32_t BINS = 2048, BIN_BITS = 11;
constexpr uint32_t SEGMENT = 128;       // bins that a warp sums at a time
constexpr uint32_t CANDIDATES = 128;    // entries of one bin that are ranked one by one
constexpr uint32_t RANKED = 256;        // the longest result that is ranked so
constexpr uint32_t FEW_ENTRIES = 2048;  // of a list on which only the block's first FEW_THREADS are at work
constexpr int FEW_THREADS = 128;
constexpr int SAMPLERS = 8;  // warps that look at a score a lane to find the range of all
constexpr uint32_t LEAST_KEY = 0x007FFFFFu,
                   MOST_KEY = 0xFF800000u;  // of both infinities; absent entries are 0

// How far to shift an interval of `span` so that it has no more than BINS bins.
CPR_DEVICE int shift_of(uint32_t span) {
  const int bits = 32 - leading_zeros(span), most = static_cast<int>(BIN_BITS);
  return bits > most ? bits - most : 0;
}

// Where a list is cut. Entries above `high` stay and those below `low` go; those between are candidates, or,
// where the cut is exact (then low = high), they stay up to the index `last`.
struct ListCut {
  float low, high;
  bool exact;
  uint32_t last;
  uint32_t wanted;  // of the candidates
};

// What is counted next: scores in the bins of their row's range; keys, or turned indices of the entries of
// one score, in 2^shift wide bins of [first, first + span]; or nothing more.
enum class Count : int { scores, keys, indices, nothing };
struct Round {
  Count what;
  int shift;
  uint32_t first, span;
  float tied;      // the score of which indices are counted
  uint32_t below;  // entries counted that rank below the m-th best
};

// The bin of score x is the whole part of (x scale + offset) BINS, where that is one.
struct Range {
  float least, most, scale, offset;
};

struct SelectMemory {
  alignas(16) uint32_t uncounted[32];  // where codes that have no bin are counted
  alignas(16) uint32_t bins[BINS];  // of zeros between two searches; then where long results are sorted
  uint32_t segments[BINS / SEGMENT];
  alignas(16) uint32_t candidates[MAX_ROWS + 1][CANDIDATES];  // rows and indices, as in a list
  uint32_t sampled[MAX_ROWS][2][SAMPLERS];
  uint32_t appended, kept;  // candidates, and entries of the list that is being made
  Range ranges[MAX_ROWS];
  Round round;
  ListCut cut;
};
// 228 KB of a multiprocessor of 9.0, of which each block takes 1 KB more: 113 KB a block
static_assert((sizeof(SelectMemory) + 127) / 128 * 128 + 3 * 8192 * 4 <= 113 * 1024,
              "two blocks with lists of 8,192 entries, two rows and an index, share a multiprocessor");

struct alignas(16) Four {
  float of[4];
};
constexpr uint32_t ABSENT = 0x7FC00000u;  // bits of the score of an entry that may not be selected: NaN

CPR_DEVICE Four load_four(const void* place) { return *static_cast<const Four*>(place); }
CPR_DEVICE Four absent_four() {
  return {{float_of(ABSENT), float_of(ABSENT), float_of(ABSENT), float_of(ABSENT)}};
}

// Entries of one query: rows of scores, then a row of indices, each `pitch` long, pitch % 4 == 0. Scores are
// absent from n to the next multiple of 4.
struct Entries {
  uint32_t* memory;
  uint32_t pitch;
  CPR_DEVICE uint32_t* row(int r) const { return memory + static_cast<int64_t>(r) * pitch; }
};

// A list of n entries, judged by one of its rows.
struct List {
  Entries entries;
  uint32_t n;
  int rows, judge;
  CPR_DEVICE uint32_t size() const { return n; }
  CPR_DEVICE Four judged(uint32_t first) const { return load_four(entries.row(judge) + first); }
  CPR_DEVICE uint32_t index(uint32_t at) const { return entries.row(rows)[at]; }
  CPR_DEVICE uint32_t word(int r, uint32_t at) const { return entries.row(r)[at]; }
};

CPR_DEVICE uint32_t greater(uint32_t a, uint32_t b) { return a > b ? a : b; }

// The key of a score, 0 where it is absent.
CPR_DEVICE uint32_t key_or_none(float score) { return score == score ? ascending_key(score) : 0u; }

// The place of a score's bin in bytes; rises with the score. The absent go to the lowest bin.
CPR_DEVICE uint32_t bin_place(float score, float scale, float offset) {
  const float share = saturated_fused(score, scale, offset);
  return bits_of(fused(share, BINS - 0.25f, 2097152.0f)) & (BINS - 1) * 4;  // 2^21: its last place is 1/4
}

CPR_DEVICE void set_range(Range& range, float least, float most) {
  range.least = least = least > -FLT_MAX ? least : -FLT_MAX;
  range.most = most = most < FLT_MAX ? most : FLT_MAX;
  const float width = most - least;
  range.scale = 1.0f / (width > 1e-30f ? width < FLT_MAX ? width : FLT_MAX : 1e-30f);
  range.offset = -product(least, range.scale);
}

// Counts the entries of a list in bins, which are zeros before. Positions from n to the next multiple of 4
// count as absent entries.
template <class Source>
CPR_DEVICE void count_bins(const Team& team, SelectMemory& memory, const Source& source, Count what) {
  const uint32_t n = source.size(), step = static_cast<uint32_t>(team.threads) * 4;
  const float scale = memory.ranges[source.judge].scale, offset = memory.ranges[source.judge].offset;
  unsigned char* bins = reinterpret_cast<unsigned char*>(memory.bins);
#pragma unroll 1
  for (uint32_t first = static_cast<uint32_t>(team.thread()) * 4; first < n; first += step) {
    Four four = source.judged(first);
    if (what == Count::scores) {
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i)
        shared_add(reinterpret_cast<uint32_t*>(bins + bin_place(four.of[i], scale, offset)), 1);
      continue;
    }
    const Round& round = memory.round;
#pragma unroll 1
    for (uint32_t i = 0; i < 4; ++i) {  // seldom: the next one moves to where the first was
      const float score = four.of[0];
      four = {{four.of[1], four.of[2], four.of[3], score}};
      uint32_t value = key_or_none(score);
      if (what == Count::indices) {
        if (score != round.tied) continue;
        value = ~source.index(first + i);
      }
      if (value - round.first <= round.span)
        shared_add(&memory.bins[(value - round.first) >> round.shift], 1);
    }
  }
}

struct alignas(16) FourBins {
  uint32_t of[4];
};
CPR_DEVICE void clear_bins(const Team& team, SelectMemory& memory) {
  FourBins* const bins = reinterpret_cast<FourBins*>(memory.bins);
#pragma unroll 1
  for (int i = team.thread(); i < static_cast<int>(BINS / 4); i += team.threads) bins[i] = {};
}

CPR_DEVICE void sum_segments(const Team& team, SelectMemory& memory) {
  static_assert(SEGMENT == 128, "a warp's fours");
  const FourBins* bins = reinterpret_cast<const FourBins*>(memory.bins) + team.thread();
#pragma unroll 1
  for (int s = team.warp(); s < static_cast<int>(BINS / SEGMENT); s += team.warps(), bins += team.threads) {
    const FourBins four = *bins;
    memory.segments[s] = warp_sum(four.of[0] + four.of[1] + four.of[2] + four.of[3]);  // all lanes the same
  }
}

// Is the bin of a key's score before `bin`?
CPR_DEVICE bool is_before(uint32_t key, uint32_t bin, const Range& range) {
  return key < LEAST_KEY || (key <= MOST_KEY && bin_place(score_of_ascending(key), range.scale,
                                                          range.offset) < bin * 4);
}

// By one warp: the greatest key whose score's bin is before `bin`, which half warps may choose. It is looked
// for among the few keys that rounding allows, and among all where it is not there. LEAST_KEY - 1: none is.
CPR_DEVICE uint32_t last_key_before(uint32_t bin, const Range& range, int lane) {
  constexpr float ROUNDING = 1.0f / 4194304.0f;  // 2^-22 of a range, twice what rounding makes of one
  const bool all_or_none = bin == 0 || bin >= BINS;
  const float width = range.most - range.least, share = (static_cast<float>(bin) - 0.125f) / (BINS - 0.25f);
  const float near = fused(share, width, range.least),
              margin = fused(fabsf(near), ROUNDING, width * ROUNDING);
  const uint32_t low = ascending_key(near - margin), high = ascending_key(near + margin);
  uint32_t key = 0;
  int shift = 28;
  if (ballot(all_or_none || (is_before(low, bin, range) && !is_before(high, bin, range))) == ~0u) {
    key = low;
    shift = (31 - leading_zeros(warp_max(all_or_none ? 0 : high - low) | 1u)) & ~3;
  }
#pragma unroll 1
  for (; shift >= 0; shift -= 4) {
    const uint32_t tried = key + (static_cast<uint32_t>(lane & 15) << shift);
    const uint32_t all = ballot(tried >= key && is_before(tried, bin, range));
    key += static_cast<uint32_t>(count_bits(all >> (lane & 16) & 0xFFFFu) - 1) << shift;
  }
  return bin == 0 ? LEAST_KEY - 1 : bin >= BINS ? MOST_KEY : key;
}

// A bin, and the entries counted before it and in it.
struct Bin {
  uint32_t at, before, inside;
};

// By one warp: the bin of the entry below which `below` of those counted rank.
CPR_DEVICE Bin find_bin(const SelectMemory& memory, uint32_t below, int lane) {
  constexpr int SEGMENTS = BINS / SEGMENT;
  uint32_t own = memory.segments[lane & (SEGMENTS - 1)];
  uint32_t upto = running(own, lane);
  const uint32_t segment = count_bits(ballot(lane < SEGMENTS && upto <= below));
  const uint32_t before_segment = shuffle(upto - own, segment);
  const uint32_t* bins = memory.bins + segment * SEGMENT;
  const FourBins four = *reinterpret_cast<const FourBins*>(bins + lane * 4);
  own = four.of[0] + four.of[1] + four.of[2] + four.of[3];
  upto = before_segment + running(own, lane);
  const int owner = count_bits(ballot(upto <= below));
  Bin bin{segment * SEGMENT + owner * 4, shuffle(upto - own, owner), 0};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    bin.inside = memory.bins[bin.at];
    if (i == 3 || bin.before + bin.inside > below) break;
    bin.before += bin.inside;
    ++bin.at;
  }
  return bin;
}

// By one warp, from the bins of a round: the cut, or the next round. `size`: greater than any index.
CPR_DEVICE void narrow(SelectMemory& memory, int judge, uint32_t size, int lane) {
  const Round round = memory.round;
  const Bin bin = find_bin(memory, round.below, lane);
  Range& range = memory.ranges[judge];
  uint32_t first, last;
  if (round.what == Count::scores) {
    const uint32_t key = last_key_before(bin.at + (lane >> 4), range, lane);
    first = bin.at == 0 ? 0 : shuffle(key, 0) + 1;
    last = shuffle(key, 16);
  } else {
    first = round.first + (bin.at << round.shift);
    last = first + ((1u << round.shift) - 1);
    if (last - round.first > round.span || last < first) last = round.first + round.span;
  }
  if (lane != 0) return;
  const uint32_t below = round.below - bin.before, wanted = bin.inside - below;
  const bool all = wanted == bin.inside;
  memory.round.what = Count::nothing;
  if (round.what == Count::indices) {
    if (all) {
      memory.cut = {round.tied, round.tied, true, ~first, 0};
    } else {
      memory.round = {Count::indices, shift_of(last - first), first, last - first, round.tied, below};
    }
    return;
  }
  // No score has the key of -0. An interval of absent entries alone ends at the least score of all.
  const float low = score_of_ascending(first > LEAST_KEY ? first : LEAST_KEY);
  const float high = score_of_ascending(last > LEAST_KEY ? last - (last == 0x7FFFFFFFu) : LEAST_KEY);
  if (all || last < LEAST_KEY) {
    memory.cut = {low, low, true, ~0u, 0};
  } else if (bin.inside <= CANDIDATES) {
    memory.cut = {low, high, false, 0, wanted};
  } else if (first == last) {
    memory.round = {Count::indices, shift_of(size - 1), ~(size - 1), size - 1, low, below};
    return;
  } else {
    memory.round = {Count::keys, shift_of(last - first), first, last - first, 0.0f, below};
    return;
  }
  set_range(range, low > range.least ? low : range.least, high > range.most ? high : range.most);
}

CPR_DEVICE uint32_t lowest_bit(uint32_t bits) {
  return static_cast<uint32_t>(count_bits((bits & (0u - bits)) - 1));
}

// Which of a thread's entries stay, a bit each, and where in the new list the first of them goes.
struct Chosen {
  uint32_t stays, place;
};

// Of GROUP fours of scores at `first`, `first` + step, ..., that a thread has read. Candidates are set aside.
template <int GROUP, class Source>
CPR_DEVICE Chosen choose(const Team& team, SelectMemory& memory, const Source& source, int rows,
                         const Four (&judged)[GROUP], uint32_t first, uint32_t step) {
  const float high = memory.cut.high, low = memory.cut.low;
  float rest = float_of(ABSENT);
  uint32_t stays = 0;
#pragma unroll
  for (int s = 0; s < 4 * GROUP; ++s) mark_above(judged[s / 4].of[s % 4], high, 1u << s, stays, rest);
  if (rest >= low) {
    uint32_t near = 0;
#pragma unroll
    for (int s = 0; s < 4 * GROUP; ++s) near |= judged[s / 4].of[s % 4] >= low ? 1u << s : 0u;
    near &= ~stays;
#pragma unroll 1
    do {
      const uint32_t s = lowest_bit(near), at = first + s / 4 * step + s % 4;
      near &= near - 1;
      if (memory.cut.exact) {
        if (source.index(at) <= memory.cut.last) stays |= 1u << s;
        continue;
      }
      const uint32_t slot = shared_add(&memory.appended, 1);
#pragma unroll 1
      for (int r = 0; r <= rows; ++r) memory.candidates[r][slot] = source.word(r, at);
    } while (near);
  }
  const uint32_t count = static_cast<uint32_t>(count_bits(stays)), upto = running(count, team.lane());
  uint32_t place = 0;
  if (team.lane() == 31) place = shared_add(&memory.kept, upto);
  return {stays, shuffle(place, 31) + upto - count};
}

// How many of n entries rank before one of them.
CPR_DEVICE uint32_t rank_among(const uint32_t* scores, const uint32_t* indices, uint32_t n, uint32_t own) {
  const float score = float_of(scores[own]);
  uint32_t rank = 0, tied = 0;
#pragma unroll 1
  for (uint32_t i = 0; i < n; ++i) {
    rank += float_of(scores[i]) > score;
    tied += float_of(scores[i]) == score;
  }
  if (tied > 1)
#pragma unroll 1
    for (uint32_t i = 0; i < n; ++i) rank += float_of(scores[i]) == score && indices[i] < indices[own];
  return rank;
}

// Ends a list with the best of the candidates; returns its length. Between two barriers.
CPR_DEVICE uint32_t add_candidates(const Team& team, const SelectMemory& memory, const Entries& to, int rows,
                                   int judge) {
  const uint32_t there = memory.appended, wanted = memory.cut.wanted, kept = memory.kept,
                 thread = static_cast<uint32_t>(team.thread());
  const uint32_t n = kept + (there < wanted ? there : wanted);
  if (thread < there) {
    const uint32_t rank = rank_among(memory.candidates[judge], memory.candidates[rows], there, thread);
    if (rank < wanted)
#pragma unroll 1
      for (int r = 0; r <= rows; ++r) to.row(r)[kept + rank] = memory.candidates[r][thread];
  }
  if (n + thread < (n + 3) / 4 * 4)
#pragma unroll 1
    for (int r = 0; r < rows; ++r) to.row(r)[n + thread] = ABSENT;
  return n;
}

// The entries that the cut keeps, but for candidates, to another list, or to the same one, for what a pass
// writes lies before what it has read, and a barrier lies between. Two rows and the indices pass through
// registers together where HOLDS, the others one by one.
template <bool HOLDS>
CPR_DEVICE void keep_from_list(const Team& team, SelectMemory& memory, const List& from, const Entries& to) {
  constexpr int GROUP = HOLDS ? 2 : 1;
  const uint32_t n = from.n, step = static_cast<uint32_t>(team.threads) * 4;
#pragma unroll 1
  for (uint32_t base = 0; base < n; base += step * GROUP) {
    const uint32_t first = base + static_cast<uint32_t>(team.thread()) * 4;
    const auto load = [&](int r, Four(&four)[GROUP]) {
#pragma unroll
      for (int g = 0; g < GROUP; ++g)
        if (first + g * step < n) four[g] = load_four(from.entries.row(r) + first + g * step);
    };
    Four one[GROUP];
#pragma unroll
    for (int g = 0; g < GROUP; ++g) one[g] = absent_four();
    load(from.judge, one);
    const Chosen chosen = choose(team, memory, from, from.rows, one, first, step);
    if constexpr (HOLDS) {
      Four two[GROUP], indices[GROUP];
      const int second = from.rows > 1;
      load(0, one);
      load(second, two);
      load(from.rows, indices);
      team.sync();
      SharedWords one_place(to.row(0) + chosen.place), two_place(to.row(second) + chosen.place),
          index_place(to.row(from.rows) + chosen.place);
#pragma unroll
      for (int s = 0; s < 4 * GROUP; ++s)
        store_marked(chosen.stays, 1u << s, two_place, two[s / 4].of[s % 4], one_place, one[s / 4].of[s % 4],
                     index_place, bits_of(indices[s / 4].of[s % 4]));
    }
#pragma unroll 1
    for (int r = HOLDS ? 2 : 0; r < from.rows + !HOLDS; ++r) {
      load(r, one);
      team.sync();
      uint32_t at = chosen.place;
#pragma unroll
      for (int s = 0; s < 4 * GROUP; ++s)
        if (chosen.stays >> s & 1u) reinterpret_cast<float*>(to.row(r))[at++] = one[s / 4].of[s % 4];
    }
  }
}

}  // namespace cpr
