// cpr::mil_nce where each query has negatives of its own, listed by index: rows are gathered a few at a time,
// scored in the sweep's order of sums, and absorbed by an online softmax. Compiled once per instruction set.
#pragma once
#include "../scores/gathered.h"
#include "mil_nce_sweep.h"

namespace cpr {
namespace CPR_ISA_NAMESPACE {

// The entries of one query: `lane` of a Pair is 1 for a positive.
struct DrawnEntries {
  Pair* entries;  // [P + M]
  int64_t count;
};

inline bool is_listed(const Pair* sorted, int64_t count, int64_t key) {
  int64_t low = 0, high = count;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (sorted[middle].key < key)
      low = middle + 1;
    else
      high = middle;
  }
  return low < count && sorted[low].key == key;
}

// What takes part for a query: its listed positives, each once, then its negatives as often as they are
// listed, other than those.
inline DrawnEntries list_drawn(const Sweep& sweep, int64_t q) {
  const LossArgs& args = sweep.args;
  Pair* const out = sweep.pairs + q * sweep.listed();
  const auto sibling = [&](int64_t key) {
    return args.query_ids && args.siblings != 0 && args.key_ids[key] == args.query_ids[q];
  };
  const auto takes_part = [&](int64_t key) {
    if (key < 0 || key >= args.num_keys) return false;
    return !args.key_ids || (args.key_ids[key] >= 0 && !(args.siblings == 2 && sibling(key)));
  };
  int64_t listed = 0, n = 0;
  for (int64_t p = 0; p < args.num_positives; ++p) {
    const int64_t key = args.positives[q * args.num_positives + p];
    if (takes_part(key)) out[listed++] = {static_cast<int32_t>(key), 0};
  }
  sort_ranking_keys(reinterpret_cast<uint64_t*>(out), listed, nullptr);  // a lane of 0 leaves the key
  for (int64_t i = 0; i < listed; ++i)
    if (n == 0 || out[i].key != out[n - 1].key) out[n++] = {out[i].key, 1};
  const int64_t positives = n;
  for (int64_t m = 0; m < args.num_negatives; ++m) {
    const int64_t key = args.negatives[q * args.num_negatives + m];
    if (!takes_part(key) || is_listed(out, positives, key)) continue;
    out[n++] = {static_cast<int32_t>(key), sibling(key) ? 1 : 0};
  }
  sweep.pair_count[q] = n;
  return {out, n};
}

// A thread's memory: gathered rows, the query, and sums.
struct DrawnMemory {
  Gathered gathered;
  float *query, *attended, *positive_attended;  // [dim]

  static int64_t floats(int64_t dim) { return 2 * Gathered::BLOCK * Gathered::pitch_of(dim) + 3 * dim; }
  static DrawnMemory at(float* memory, int64_t dim) {
    const int64_t rows = Gathered::BLOCK * Gathered::pitch_of(dim);
    float* const query = memory + 2 * rows;
    return {{memory, memory + rows}, query, query + dim, query + 2 * dim};
  }
};

// Scores of `count` entries, up to Gathered::BLOCK, -inf in the lanes beyond; `which` holds their keys.
inline void score_drawn(const LossArgs& args, const DrawnMemory& m, const Pair* entries, int64_t count,
                        int32_t* which, float* scores) {
  const View view{args.query, args.keys, args.query_stride, args.key_stride, args.dim};
  for (int64_t i = 0; i < count; ++i) which[i] = entries[i].key;
  m.gathered.score(view, args.dtype, m.query, which, count, count, scores);
  for (int64_t i = count; i < Gathered::BLOCK; ++i) scores[i] = -INFINITY;
}

// Feature row of the i-th of the entries that were scored last.
inline const float* drawn_row(const LossArgs& args, const DrawnMemory& m, const int32_t* which, int64_t i) {
  if (args.dtype == DType::float32) return static_cast<const float*>(args.keys) + which[i] * args.key_stride;
  return m.gathered.wide + i * Gathered::pitch_of(args.dim);
}

inline void add_row(float weight, const float* row, int64_t dim, float* to) {
  for (int64_t d = 0; d < dim; ++d) to[d] += weight * row[d];
}

// A running softmax over blocks of scores: `absorb` makes weights of scores, relative to the new top.
struct RunningSums {
  float top = LOWEST, mass = 0;

  void absorb(float scale, float* scores, int64_t dim, float* attended) {
    float highest = top;
    for (int64_t i = 0; i < Gathered::BLOCK; ++i) highest = scores[i] > highest ? scores[i] : highest;
    const float shrink = mass > 0 ? std::exp((top - highest) * scale) : 0.0f;
    F sum = zero();
    for (int64_t i = 0; i < Gathered::BLOCK; i += W) {
      const F weight = exp_nonpositive(mul(sub(load(scores + i), set1(highest)), set1(scale)));
      store(scores + i, weight);
      sum = add(sum, weight);
    }
    float lanes[W];
    store(lanes, sum);
    mass *= shrink;
    for (const float lane : lanes) mass += lane;
    for (int64_t d = 0; d < dim && highest > top; ++d) attended[d] *= shrink;
    top = highest;
  }
};

// All entries of query q into its lane of the block's sums.
inline void sweep_drawn(const Sweep& sweep, int64_t q, const DrawnMemory& m) {
  const LossArgs& args = sweep.args;
  const DrawnEntries drawn = list_drawn(sweep, q);
  const int64_t block = q / WIDTH, dim = args.dim, summed = sweep.gradient ? dim : 0;
  const int lane = static_cast<int>(q % WIDTH);
  widen_row(row_at(args.query, args.dtype, args.query_stride, q), args.dtype, dim, m.query);
  std::memset(m.attended, 0, sizeof(float) * static_cast<size_t>(2 * dim));
  const BlockRanks ranks = sweep.stats ? sweep.ranks(block, 0) : BlockRanks{};
  if (sweep.stats) {
    ranks.above[lane] = 0;
    ranks.best(lane).clear();
  }
  RunningSums every, positive;
  bool finite = true;
  for (int64_t first = 0; first < drawn.count && finite; first += Gathered::BLOCK) {
    const int64_t left = drawn.count - first, count = left < Gathered::BLOCK ? left : Gathered::BLOCK;
    const Pair* const entries = drawn.entries + first;
    int32_t which[Gathered::BLOCK];
    float scores[Gathered::BLOCK], of_positives[Gathered::BLOCK];
    score_drawn(args, m, entries, count, which, scores);
    bool any = false;
    for (int64_t i = 0; i < Gathered::BLOCK; ++i) {
      const bool counts = i < count && entries[i].lane == 1;
      of_positives[i] = counts ? scores[i] : -INFINITY;
      any = any || counts;
      finite = finite && (i >= count || std::isfinite(scores[i]));
      if (!sweep.stats || i >= count) continue;
      ranks.above[lane] += scores[i] > sweep.own[q];
      ranks.best(lane).insert(scores[i], which[i]);
    }
    every.absorb(sweep.scale, scores, summed, m.attended);
    if (any) positive.absorb(sweep.scale, of_positives, summed, m.positive_attended);
    for (int64_t i = 0; i < count && sweep.gradient; ++i) {
      const float* const row = drawn_row(args, m, which, i);
      add_row(scores[i], row, dim, m.attended);
      if (entries[i].lane == 1) add_row(of_positives[i], row, dim, m.positive_attended);
    }
  }
  const Partial out = sweep.partial(block, 0);
  out.top[lane] = every.top;
  out.mass[lane] = every.mass;
  out.positive_top[lane] = positive.top;
  out.positive_mass[lane] = positive.mass;
  out.spoilt[lane] = finite ? 0.0f : 1.0f;
  for (int64_t d = 0; d < summed; ++d) out.attended[d * WIDTH + lane] = m.attended[d];
  for (int64_t d = 0; d < summed; ++d) out.positive_attended[lane * dim + d] = m.positive_attended[d];
}

// As sweep_keys, over each query's own entries.
template <class Finish>
bool sweep_all_drawn(const LossArgs& args, Wanted wanted, const Finish& finish) {
  Sweep sweep = plan_sweep(args, wanted);
  return in_every_thread(sweep, true, DrawnMemory::floats(args.dim), [&](PanelMemory&, float* room) {
    const DrawnMemory memory = DrawnMemory::at(room, args.dim);
#pragma omp for schedule(dynamic)
    for (int64_t q = 0; q < args.num_queries; ++q) sweep_drawn(sweep, q, memory);
#pragma omp for schedule(static)
    for (int64_t q = 0; q < args.num_queries; ++q) finish(sweep, q, room);
  });
}

// d loss / d logit of every entry of query q, times grad_loss / T: in place of what marks positives.
inline void weigh_drawn(const Sweep& sweep, int64_t q, const DrawnMemory& m, float grad_loss, float lse_all,
                        float lse_positive) {
  const LossArgs& args = sweep.args;
  const DrawnEntries drawn = list_drawn(sweep, q);
  widen_row(row_at(args.query, args.dtype, args.query_stride, q), args.dtype, args.dim, m.query);
  for (int64_t first = 0; first < drawn.count; first += Gathered::BLOCK) {
    const int64_t left = drawn.count - first, count = left < Gathered::BLOCK ? left : Gathered::BLOCK;
    Pair* const entries = drawn.entries + first;
    int32_t which[Gathered::BLOCK];
    float scores[Gathered::BLOCK];
    score_drawn(args, m, entries, count, which, scores);
    for (int64_t i = 0; i < count; ++i) {
      const float logit = scores[i] * sweep.scale;
      float weight = std::exp(logit - lse_all);
      if (entries[i].lane == 1) weight -= std::exp(logit - lse_positive);
      weight *= grad_loss * sweep.scale;
      std::memcpy(&entries[i].lane, &weight, sizeof weight);
    }
  }
}

// The gradient of the keys [begin, end): every entry that is among them, by query, then as listed.
inline void grade_drawn(const Sweep& sweep, int64_t begin, int64_t end, float* query, const float* lse_all,
                        float* grad) {
  const LossArgs& args = sweep.args;
  std::memset(grad + begin * args.dim, 0, sizeof(float) * static_cast<size_t>((end - begin) * args.dim));
  for (int64_t q = 0; q < args.num_queries; ++q) {
    widen_row(row_at(args.query, args.dtype, args.query_stride, q), args.dtype, args.dim, query);
    if (std::isnan(lse_all[q])) keep_finite(query, args.dim, query);  // its weights are NaN
    const Pair* const entries = sweep.pairs + q * sweep.listed();
    for (int64_t i = 0; i < sweep.pair_count[q]; ++i) {
      if (entries[i].key < begin || entries[i].key >= end) continue;
      float weight;
      std::memcpy(&weight, &entries[i].lane, sizeof weight);
      add_row(weight, query, args.dim, grad + entries[i].key * args.dim);
    }
  }
}

inline bool drawn_keys_gradient(const LossArgs& args, const float* grad_loss, const float* lse_all,
                                const float* lse_positive, float* grad_keys) {
  Sweep sweep = plan_sweep(args, {false, false});
  const int64_t share = args.num_keys / args.threads + 1;  // never 0, a step of which divides by it
  return in_every_thread(sweep, false, DrawnMemory::floats(args.dim), [&](PanelMemory&, float* room) {
    const DrawnMemory memory = DrawnMemory::at(room, args.dim);
#pragma omp for schedule(dynamic)
    for (int64_t q = 0; q < args.num_queries; ++q)
      weigh_drawn(sweep, q, memory, grad_loss[q], lse_all[q], lse_positive[q]);
#pragma omp for schedule(static)
    for (int64_t begin = 0; begin < args.num_keys; begin += share)
      grade_drawn(sweep, begin, begin + share < args.num_keys ? begin + share : args.num_keys, memory.query,
                  lse_all, grad_keys);
  });
}

}  // namespace CPR_ISA_NAMESPACE
}  // namespace cpr
