// The statistics of a query out of the lists that the lanes of attend_ranks.h have left.
#pragma once
#include "../../ranking.h"
#include "attend_ranks.h"

namespace cpr {

// What an entry that is ranked is known by, descending as they rank: its score, then its key, which the own
// pair is before; 0 is none.
constexpr uint32_t OWN_PLACE = UINT32_MAX;
CPR_DEVICE uint64_t entry_of(float score, uint32_t place) {
  return static_cast<uint64_t>(ascending_key(score)) << 32 | place;
}
CPR_DEVICE uint32_t place_of_key(uint32_t key) { return OWN_PLACE - 1 - key; }  // and back

CPR_DEVICE uint64_t greatest(uint64_t a, uint64_t b) { return a > b ? a : b; }
CPR_DEVICE uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }

// A lane's best few of the lists of one query, every 32nd list.
struct LaneBest {
  uint64_t entries[BEST] = {};

  CPR_DEVICE void add(uint64_t entry) {
#pragma unroll
    for (int i = BEST - 1; i > 0; --i) entries[i] = greatest(entries[i], least(entries[i - 1], entry));
    entries[0] = greatest(entries[0], entry);
  }
  CPR_DEVICE void add_list(const RankRoom& ranks, int64_t list) {
    uint32_t keys[BEST];
    float scores[BEST];
#pragma unroll
    for (int i = 0; i < BEST; ++i) {
      keys[i] = ranks.best_keys[list * BEST + i];
      scores[i] = ranks.best_scores[list * BEST + i];
    }
#pragma unroll
    for (int i = 0; i < BEST; ++i)
      add(keys[i] == UINT32_MAX ? 0 : entry_of(scores[i], place_of_key(keys[i])));
  }
  // The best of all lanes', which its lane then no longer has.
  CPR_DEVICE uint64_t take() {
    const uint32_t score = static_cast<uint32_t>(entries[0] >> 32), best = warp_max(score);
    const uint32_t place = warp_max(score == best ? static_cast<uint32_t>(entries[0]) : 0u);
    const uint64_t taken = static_cast<uint64_t>(best) << 32 | place;
    if (entries[0] == taken) {
#pragma unroll
      for (int i = 0; i < BEST; ++i) entries[i] = i + 1 < BEST ? entries[i + 1 < BEST ? i + 1 : 0] : 0;
    }
    return taken;
  }
};

// Of one query by one warp, alike in all lanes: the best of all lists and the own pair, one after the other.
struct QueryStats {
  uint32_t above = 0, positives = 0;
  bool best_is_positive = false;

  CPR_DEVICE QueryStats(const LossArgs& loss, const RankRoom& ranks, int parts, int64_t query, float own,
                        bool own_counts) {
    const int lane = thread_index() & 31;
    LaneBest best;
    if (lane == 0) best.add(entry_of(own, OWN_PLACE));
#pragma unroll 1
    for (int i = lane; i < parts * RANK_LISTS; i += 32) {
      const int64_t list = (i / RANK_LISTS * loss.num_queries + query) * RANK_LISTS + i % RANK_LISTS;
      above += ranks.above[list];
      best.add_list(ranks, list);
    }
    above = warp_sum(above);
#pragma unroll 1
    for (int taken = 0; taken < BEST; ++taken) {
      const uint64_t entry = best.take();
      if (entry == 0) break;
      const uint32_t place = static_cast<uint32_t>(entry);
      const bool positive = place == OWN_PLACE ? own_counts : is_positive(loss, query, place_of_key(place));
      positives += positive;
      if (taken == 0) best_is_positive = positive;
    }
  }
};

}  // namespace cpr
