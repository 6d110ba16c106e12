// Statistics of the logits in registers, as attend.h forms the scores: a lane counts those above the own
// pair's and keeps the best few of its columns, for its two rows.
#pragma once
#include <type_traits>

#include "../score.h"
#include "layout.h"

namespace cpr {

// What a sweep does: sums for queries, gradients of keys, or sums with statistics of the logits.
constexpr int ATTEND_SUMS = 0, ATTEND_GRADIENT = 1, ATTEND_RANKS = 2;

// A lane's statistics of its two rows' scores: the best by (score descending, column ascending).
struct LaneRanks {
  static constexpr bool COUNTS = true;
  float own[2];
  uint32_t above[2] = {0, 0};
  float scores[2][BEST];
  uint32_t columns[2][BEST];

  CPR_DEVICE LaneRanks(const RankRoom& room, uint32_t num_rows, uint32_t first) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t row = first + static_cast<uint32_t>(8 * half);
      own[half] = room.own[row < num_rows ? row : num_rows - 1];
#pragma unroll
      for (int i = 0; i < BEST; ++i) {
        scores[half][i] = float_of(0xFF800000u);  // -inf
        columns[half][i] = UINT32_MAX;
      }
    }
  }
  // Columns come in ascending order: of equal scores the one that was there stays before the new one.
  template <int HALF>
  CPR_DEVICE void add(float score, uint32_t column) {
    above[HALF] += score > own[HALF] ? 1u : 0u;
    if (!(score > scores[HALF][BEST - 1])) return;
    bool higher = true;  // than the entry at i
#pragma unroll
    for (int i = BEST - 1; i >= 0; --i) {
      const bool than_next = i > 0 && score > scores[HALF][i > 0 ? i - 1 : 0];
      if (higher) {
        scores[HALF][i] = than_next ? scores[HALF][i > 0 ? i - 1 : 0] : score;
        columns[HALF][i] = than_next ? columns[HALF][i > 0 ? i - 1 : 0] : column;
      }
      higher = than_next;
    }
  }
  CPR_DEVICE void write(const RankRoom& room, uint32_t num_rows, uint32_t first, uint32_t part) const {
    const int lane = thread_index() & 31;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t row = first + static_cast<uint32_t>(8 * half);
      if (row >= num_rows) continue;
      const int64_t at = (static_cast<int64_t>(part) * num_rows + row) * RANK_LISTS + lane % RANK_LISTS;
      room.above[at] = above[half];
#pragma unroll
      for (int i = 0; i < BEST; ++i) {
        room.best_scores[at * BEST + i] = scores[half][i];
        room.best_keys[at * BEST + i] = columns[half][i];
      }
    }
  }
};

// In place of them where there are none.
struct NoRanks {
  static constexpr bool COUNTS = false;
  CPR_DEVICE NoRanks(const RankRoom&, uint32_t, uint32_t) {}
  template <int HALF>
  CPR_DEVICE void add(float, uint32_t) {}
  CPR_DEVICE void write(const RankRoom&, uint32_t, uint32_t, uint32_t) const {}
};

template <int MODE>
using Ranks = std::conditional_t<MODE == ATTEND_RANKS, LaneRanks, NoRanks>;

// The product of a query with its own positive, by one warp, alike in all lanes; NaN where it is not finite.
CPR_DEVICE float own_score(const LossArgs& loss, int64_t query, int lane) {
  float own = 0.0f;
  for (int64_t d = lane; d < loss.dim; d += 32)
    own += element(loss.query, loss.dtype, query * loss.query_stride + d) *
           element(loss.positive, loss.dtype, query * loss.positive_stride + d);
#pragma unroll
  for (int step = 16; step; step >>= 1) own += shuffle_xor(own, step);
  return fmaf(own, 0.0f, own);
}

// Is an entry that takes part a positive?
CPR_DEVICE bool is_positive(const LossArgs& args, int64_t query, int64_t key) {
  if (args.siblings == 1 && args.query_ids && args.key_ids[key] == args.query_ids[query]) return true;
  for (int64_t p = 0; p < args.num_positives; ++p)
    if (args.positives[query * args.num_positives + p] == key) return true;
  return false;
}

}  // namespace cpr
