// Selection of short lists by 16-bit codes. A thread holds the codes of its entries in registers, two to a
// register, of two rows, and decides two stages by them: codes are counted one by one, the code of the m-th
// best is the cut, entries above it stay, and those of that very code, the candidates, are ranked by their
// scores, which are read again. Then those that stay go to a list, of which fewer threads hold the codes.
//
// A code rises with the score, never falls, so that what the codes decide is what the scores decide. Where
// they decide too little (too many candidates, or a cut among entries too low for a code of their own), the
// query begins again by bins.h.
#pragma once
#include <utility>

#include "../device/codes.h"
#include "ring.h"

namespace cpr {

constexpr uint32_t LOWEST_CODE = 0x3401u;  // after that of 1/4; 2,048 to that of 1
constexpr uint32_t NO_CODE = 0x7FFF7FFFu;  // equal to none
static_assert(LOWEST_CODE + BINS - 1 == 0x3C00u, "a bin a code");

// The code of a score is that of (score scale + offset), kept within 0 and 1: the sampled range from 0.3 to
// 0.95.
struct Coding {
  float scale, offset;
  CPR_DEVICE explicit Coding(const Range& range)
      : scale(product(range.scale, 0.65f)), offset(fused(range.offset, 0.65f, 0.3f)) {}
  CPR_DEVICE uint32_t pair(float low, float high) const {
    return to_halves(saturated_fused(low, scale, offset), saturated_fused(high, scale, offset));
  }
};

struct CodeCut {
  uint32_t least, tied;  // in both halves: the least code that stays, and that of the candidates
  uint32_t candidates, wanted;
};

// Where the candidates of bins.h are.
struct CodeMemory {
  uint32_t scores[CANDIDATES], indices[CANDIDATES], owners[CANDIDATES];
  uint32_t dropped[HALF_THREADS];  // candidates that do not stay, a bit each
  CodeCut cut;
  bool failed;
};
static_assert(sizeof(CodeMemory) <= sizeof(SelectMemory::candidates), "it fits there");

struct alignas(8) CodedEntry {
  uint32_t codes;  // of both rows, the first one's in the lower half
  uint32_t index;
};
struct alignas(16) TwoEntries {
  CodedEntry of[2];
};

// Entries in registers, PAIRS of codes a row. Bit s of a mask is that of pair s % 16, half s / 16.
template <int PAIRS>
struct Held {
  static_assert(PAIRS <= 16, "a bit an entry");
  uint32_t own[PAIRS], other[PAIRS];  // codes by the rows that judge first and second
  uint32_t stays, tied;
};

// Calls what is given with each pair's number, known when it is compiled.
template <class Given, int... P>
CPR_DEVICE void for_each_of(const Given& given, std::integer_sequence<int, P...>) {
  (given(std::integral_constant<int, P>{}), ...);
}
template <int PAIRS, class Given>
CPR_DEVICE void for_each_pair(const Given& given) {
  for_each_of(given, std::make_integer_sequence<int, PAIRS>{});
}

// Where a thread's entry is in the list that was loaded.
CPR_DEVICE uint32_t position(const Team& team, uint32_t s) {
  const uint32_t pair = s % 16;
  return (pair / 2 * static_cast<uint32_t>(team.threads) + static_cast<uint32_t>(team.thread())) * 4 +
         pair % 2 * 2 + s / 16;
}

// Codes of the ring's entries, zeros of those that are absent by a row. By all threads.
template <int PAIRS, class Args>
CPR_DEVICE void load_ring(const Team& team, const Ring<Args>& ring, const Coding& own, const Coding& other,
                          Held<PAIRS>& held) {
  constexpr uint32_t STEP = CODED_THREADS<PAIRS> * 4;
  const uint32_t first = static_cast<uint32_t>(team.thread()) * 4;
  const float *from_own = ring.own + first, *from_other = ring.other + first;
  const int left = static_cast<int>(ring.size() - first);
#pragma unroll
  for (int l = 0; l < PAIRS / 2; ++l) {
    uint32_t *to_own = held.own + 2 * l, *to_other = held.other + 2 * l;
    to_own[0] = to_own[1] = to_other[0] = to_other[1] = 0;
    if (static_cast<int>(l * STEP) < left) {
      Four a = load_four(from_own + l * STEP), b = load_four(from_other + l * STEP);
      float sum = product(a.of[0], b.of[0]);
#pragma unroll
      for (int i = 1; i < 4; ++i) sum = fused(a.of[i], b.of[i], sum);
      if (sum != sum)  // one may be NaN
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (unordered(a.of[i], b.of[i])) a.of[i] = b.of[i] = float_of(ABSENT);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        to_own[h] = own.pair(a.of[2 * h], a.of[2 * h + 1]);
        to_other[h] = other.pair(b.of[2 * h], b.of[2 * h + 1]);
      }
    }
  }
}

// Codes of a list's entries, which fill all threads; `turned`: the second row judges first.
template <int PAIRS>
CPR_DEVICE void load_list(const Team& team, const CodedEntry* list, bool turned, Held<PAIRS>& held) {
  const uint32_t of_own = turned ? UPPER : LOWER, of_other = turned ? LOWER : UPPER;
#pragma unroll
  for (int p = 0; p < PAIRS; ++p) {
    const TwoEntries two =
        *reinterpret_cast<const TwoEntries*>(list + position(team, static_cast<uint32_t>(p)));
    held.own[p] = halves_of(two.of[0].codes, two.of[1].codes, of_own);
    held.other[p] = halves_of(two.of[0].codes, two.of[1].codes, of_other);
  }
}

// By one warp: the cut that keeps `keep` of the entries counted, where codes can decide it.
CPR_DEVICE void find_code_cut(const SelectMemory& memory, uint32_t keep, int lane, CodeMemory& codes) {
  constexpr int SEGMENTS = BINS / SEGMENT;
  const uint32_t counted = warp_sum(lane < SEGMENTS ? memory.segments[lane] : 0);
  const bool enough = counted >= keep;
  const Bin bin = find_bin(memory, enough ? counted - keep : 0, lane);
  const uint32_t wanted = keep - (counted - bin.before - bin.inside),
                 code = (LOWEST_CODE + bin.at) * 0x10001u;
  if (lane > 0) return;
  const bool all = wanted == bin.inside;
  codes.cut.least = code;
  codes.cut.tied = all ? NO_CODE : code;
  codes.cut.candidates = all ? 0 : bin.inside;
  codes.cut.wanted = wanted;
  codes.failed = !enough || (!all && bin.inside > CANDIDATES);
}

template <int PAIRS>
CPR_DEVICE void count_codes(const uint32_t (&held)[PAIRS], SelectMemory& memory) {
#pragma unroll
  for (int p = 0; p < PAIRS; ++p) count_pair(held[p], memory.bins, LOWEST_CODE);
}

// Marks what stays by the cut, candidates among it; codes by the other row of the rest become zeros.
template <int PAIRS>
CPR_DEVICE void mark_codes(const uint32_t (&judged)[PAIRS], uint32_t (&beside)[PAIRS], const CodeCut& cut,
                           Held<PAIRS>& held) {
  const uint32_t least = cut.least, tied = cut.tied;
  held.stays = held.tied = 0;
  for_each_pair<PAIRS>([&](auto pair) {
    constexpr int p = decltype(pair)::value;
    const uint32_t mask = at_least(judged[p], least);
    beside[p] &= mask;
    held.stays = marked_by<0x10001u << p>(mask, held.stays);
    held.tied = marked_by<0x10001u << p>(equal_to(judged[p], tied), held.tied);
  });
}

// Sets candidates aside to be ranked; an entry's index is its place, or in the list.
template <class Args>
CPR_DEVICE void gather_candidates(const Team& team, SelectMemory& memory, CodeMemory& codes,
                                  const Ring<Args>& ring, const CodedEntry* list, bool listed,
                                  uint32_t left) {
#pragma unroll 1
  for (; left; left &= left - 1) {
    const uint32_t s = lowest_bit(left), slot = shared_add(&memory.appended, 1);
    uint32_t at = position(team, s);
    if (listed) at = list[at].index;
    codes.scores[slot] = bits_of(ring.own[at]);
    codes.indices[slot] = at;
    codes.owners[slot] = static_cast<uint32_t>(team.thread()) << 5 | s;
  }
}

// Drops candidates beyond those wanted; where the next stage counts codes of the other row, not theirs.
template <class Args>
CPR_DEVICE void rank_candidates(const Team& team, SelectMemory& memory, CodeMemory& codes,
                                const Ring<Args>& ring, bool counts) {
  const uint32_t n = codes.cut.candidates;
#pragma unroll 1
  for (uint32_t i = static_cast<uint32_t>(team.thread()); i < n; i += static_cast<uint32_t>(team.threads)) {
    if (rank_among(codes.scores, codes.indices, n, i) < codes.cut.wanted) continue;
    shared_or(&codes.dropped[codes.owners[i] >> 5], 1u << (codes.owners[i] & 31));
    if (!counts) continue;
    const uint32_t code =
        Coding(memory.ranges[ring.beside]).pair(ring.other[codes.indices[i]], 0.0f) & 0xFFFFu;
    if (code >= LOWEST_CODE) shared_add(&memory.bins[code - LOWEST_CODE], ~0u);
  }
}

// What stays of the entries held, to a list.
template <int PAIRS>
CPR_DEVICE void keep_codes(const Team& team, SelectMemory& memory, const CodedEntry* from, bool listed,
                           bool turned, const Held<PAIRS>& held, CodedEntry* to) {
  const uint32_t count = static_cast<uint32_t>(count_bits(held.stays)), upto = running(count, team.lane());
  uint32_t place = 0;
  if (team.lane() == 31) place = shared_add(&memory.kept, upto);
  place = shuffle(place, 31) + upto - count;
  if (listed) {
#pragma unroll 1
    for (uint32_t left = held.stays; left; left &= left - 1)
      to[place++] = from[position(team, lowest_bit(left))];
    return;
  }
  const uint32_t lower = turned ? LOWER_TURNED : LOWER, upper = turned ? UPPER_TURNED : UPPER;
  SharedPairs at(to + place);
  for_each_pair<PAIRS>([&](auto pair) {
    constexpr int p = decltype(pair)::value;
    const uint32_t index =
        static_cast<uint32_t>(team.thread()) * 4 + p / 2 * CODED_THREADS<PAIRS> * 4 + p % 2 * 2;
    store_marked<1u << p>(held.stays, at, halves_of(held.own[p], held.other[p], lower), index);
    store_marked<0x10000u << p>(held.stays, at, halves_of(held.own[p], held.other[p], upper), index + 1);
  });
}

// All stages of a query by codes. The result's entries are where the bins were. Threads that are no longer
// needed return early; whether it `failed` can be read after a barrier of the block.
template <int PAIRS, class Args>
CPR_DEVICE List select_by_codes(Team& team, SelectMemory& memory, const Args& args, uint32_t query,
                                unsigned char* lists) {
  CodeMemory& codes = *reinterpret_cast<CodeMemory*>(memory.candidates);
  CodedEntry* const entries = reinterpret_cast<CodedEntry*>(lists);
  uint32_t from = args.coded_entries, to = 0;  // of the two lists
  bool listed = false;
  uint32_t n = args.num_keys;
  const Entries result{memory.bins, RANKED};
#pragma unroll 1
  for (int stage = args.first; stage < args.stages;) {
    const int judge = args.row_of_stage[stage];
    Ring ring(args, query, judge, true);
    const bool turned = judge == 1;
    Held<PAIRS> held;
    codes.dropped[team.thread()] = 0;
    if (team.thread() == 0) memory.kept = 0;
    if (listed)
      load_list(team, entries + from, turned, held);
    else
      load_ring(team, ring, Coding(memory.ranges[judge]), Coding(memory.ranges[ring.beside]), held);
    bool second = false;
    do {  // one stage, or two
      if (second)
        ring.turn(), count_codes(held.other, memory);
      else
        count_codes(held.own, memory);
      team.sync();
      sum_segments(team, memory);
      team.sync();
      if (team.warp() == 0) find_code_cut(memory, args.keep[stage], team.lane(), codes);
      if (team.thread() == 0) memory.appended = 0;
      team.sync();
      if (codes.failed) return {result, 0, args.rows, 0};
      clear_bins(team, memory);
      if (second)
        mark_codes(held.other, held.own, codes.cut, held);
      else
        mark_codes(held.own, held.other, codes.cut, held);
      gather_candidates(team, memory, codes, ring, entries + from, listed,
                        held.tied & ~codes.dropped[team.thread()]);
      team.sync();
      n = args.keep[stage++];
      second = args.paired >> stage & 1;
      rank_candidates(team, memory, codes, ring, second);
    } while (second);
    team.sync();
    held.stays &= ~codes.dropped[team.thread()];
    keep_codes(team, memory, entries + from, listed, turned, held, entries + to);
    const int needed = static_cast<int>((n + PAIRS * 64 - 1) / (PAIRS * 64)) * 32;
#pragma unroll 1
    for (uint32_t i = stage < args.stages ? n + static_cast<uint32_t>(team.thread()) : ~0u;
         i < static_cast<uint32_t>(needed * 2 * PAIRS); i += static_cast<uint32_t>(team.threads))
      entries[to + i] = {};
    const uint32_t made = to;
    to = from, from = made;
    listed = true;
    team.sync();
    team.threads = needed;
    if (team.thread() >= needed) break;
  }
  const int last = args.row_of_stage[args.stages - 1];
  if (team.thread() < team.threads) {
    const Ring ring(args, query, last, true);
#pragma unroll 1
    for (uint32_t i = static_cast<uint32_t>(team.thread()); i < n; i += static_cast<uint32_t>(team.threads)) {
      result.row(last)[i] = ring.word(last, entries[from + i].index);
      result.row(args.rows)[i] = entries[from + i].index;
    }
    team.sync();
  }
  return {result, n, args.rows, 0};
}

}  // namespace cpr
