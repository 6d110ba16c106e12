// Statistics of the logits, taken as scores stream by: how many rank above the own pair's, and the best few.
// Compiled once per instruction set.
#pragma once
#include "mil_nce_panel.h"

namespace cpr {
namespace CPR_ISA_NAMESPACE {

constexpr int32_t OWN = -1, NONE = INT32_MAX;  // in place of a key: the own pair, no entry

// The best entries of one query by (score descending, key ascending), `step` numbers apart.
struct BestOfQuery {
  float* scores;
  int32_t* keys;
  int64_t step;

  void clear() const {
    for (int64_t i = 0; i < BEST; ++i) {
      scores[i * step] = -INFINITY;
      keys[i * step] = NONE;
    }
  }
  bool ranks_before(float score, int32_t key, int64_t i) const {
    return score > scores[i * step] || (score == scores[i * step] && key < keys[i * step]);
  }
  void insert(float score, int32_t key) const {
    int64_t at = BEST;
    while (at > 0 && ranks_before(score, key, at - 1)) --at;
    for (int64_t i = BEST - 1; i > at; --i) {
      scores[i * step] = scores[(i - 1) * step];
      keys[i * step] = keys[(i - 1) * step];
    }
    if (at == BEST) return;
    scores[at * step] = score;
    keys[at * step] = key;
  }
};

// The same for a block's queries.
struct BlockRanks {
  int32_t* above;  // [WIDTH] scores above the own pair's
  float* scores;   // [BEST, WIDTH]
  int32_t* keys;   // [BEST, WIDTH]

  static int64_t floats() { return (1 + 2 * BEST) * WIDTH; }
  static BlockRanks at(float* memory) {
    int32_t* const whole = reinterpret_cast<int32_t*>(memory);
    return {whole, memory + WIDTH, whole + (1 + BEST) * WIDTH};
  }
  BestOfQuery best(int lane) const { return {scores + lane, keys + lane, WIDTH}; }
  void clear() const {
    for (int lane = 0; lane < WIDTH; ++lane) {
      above[lane] = 0;
      best(lane).clear();
    }
  }

  // A panel's scores [count, WIDTH], -inf where a key takes no part; keys come in ascending order.
  void take_panel(int64_t first, int64_t count, const float* panel, const float* own) const {
    for (int i = 0; i < NR; ++i) {
      const F mine = load(own + i * W);
      F higher = zero(), least = load(scores + (BEST - 1) * WIDTH + i * W);
      for (int64_t j = 0; j < count; ++j) {
        const F score = load(panel + j * WIDTH + i * W);
        higher = add(higher, select(gt(score, mine), set1(1.0f), zero()));
        Mask better = gt(score, least);
        if (better == 0) continue;
        for (; better; better = static_cast<Mask>(better & (better - 1))) {
          const int lane = i * W + __builtin_ctz(better);
          best(lane).insert(panel[j * WIDTH + lane], static_cast<int32_t>(first + j));
        }
        least = load(scores + (BEST - 1) * WIDTH + i * W);
      }
      float counts[W];
      store(counts, higher);
      for (int lane = 0; lane < W; ++lane) above[i * W + lane] += static_cast<int32_t>(counts[lane]);
    }
  }
};

// Is an entry that takes part a positive of the query? `own_positive`: is the own pair?
inline bool is_positive(const LossArgs& args, int64_t q, int32_t key, bool own_positive) {
  if (key == OWN) return own_positive;
  if (args.siblings == 1 && args.query_ids && args.key_ids[key] == args.query_ids[q]) return true;
  const int64_t* listed = args.positives + q * args.num_positives;
  for (int64_t p = 0; p < args.num_positives; ++p)
    if (listed[p] == key) return true;
  return false;
}

// The product of a query, a lane of `packed` [dim, WIDTH], with its own positive [dim], in the sweep's order.
inline float own_score(const float* own, const float* packed, int lane, int64_t dim) {
  float sum = 0;
  for (int64_t d = 0; d < dim; d += DEPTH) {
    float chain = 0;
    for (int64_t e = d; e < dim && e < d + DEPTH; ++e)
      chain = std::fma(own[e], packed[e * WIDTH + lane], chain);
    sum += chain;
  }
  return sum;
}

}  // namespace CPR_ISA_NAMESPACE
}  // namespace cpr
