// cpr::mil_nce on CPU, compiled once per instruction set. One sweep over the keys gives the loss and its
// gradient: the queue carries no gradient, so d loss / d query is a difference of two attention outputs.
#include "../../mil_nce.h"

#include "../kernels.h"
#include "mil_nce_drawn.h"

namespace cpr {
namespace CPR_ISA_NAMESPACE {
namespace {

// A query's results where a score that takes part is not finite.
void write_nan(const Sweep& sweep, int64_t q, const LossOut& out) {
  const int64_t dim = sweep.args.dim;
  out.loss[q] = out.lse_all[q] = out.lse_positive[q] = out.own_weight[q] = NAN;
  for (int64_t d = 0; sweep.gradient && d < dim; ++d) out.grad_query[q * dim + d] = NAN;
  for (int64_t i = 0; sweep.stats && i < 3; ++i) out.stats[q * 3 + i] = -1;
}

// A query's ranks over all chunks, in order; the entries in `best` beyond those already there.
int64_t merge_ranks(const Sweep& sweep, int64_t q, const BestOfQuery& best) {
  const int lane = static_cast<int>(q % WIDTH);
  int64_t above = 0;
  for (int64_t c = 0; c < sweep.chunks; ++c) {
    const BlockRanks ranks = sweep.ranks(q / WIDTH, c);
    const BestOfQuery of_chunk = ranks.best(lane);
    above += ranks.above[lane];
    for (int64_t i = 0; i < BEST; ++i) best.insert(of_chunk.scores[i * WIDTH], of_chunk.keys[i * WIDTH]);
  }
  return above;
}

void write_stats(const Sweep& sweep, int64_t q, bool own_positive, int64_t* out) {
  float scores[BEST];
  int32_t keys[BEST];
  const BestOfQuery best{scores, keys, 1};
  best.clear();
  best.insert(sweep.own[q], OWN);
  out[0] = merge_ranks(sweep, q, best);
  out[1] = out[2] = 0;
  for (int64_t i = 0; i < BEST; ++i) {
    if (keys[i] == NONE || !is_positive(sweep.args, q, keys[i], own_positive)) continue;
    out[1] += i == 0;
    out[2] += 1;
  }
}

bool is_spoilt(const Sweep& sweep, int64_t block, int lane) {
  bool spoilt = false;
  for (int64_t c = 0; c < sweep.chunks; ++c) spoilt = spoilt || sweep.partial(block, c).spoilt[lane] != 0;
  return spoilt;
}

// The chunks' sums of one query, in order, with its own pair: loss and gradient.
void combine(const Sweep& sweep, int64_t q, float* row, const LossOut& out) {
  const LossArgs& args = sweep.args;
  const int64_t block = q / WIDTH, dim = args.dim;
  const int lane = static_cast<int>(q % WIDTH);
  float* own_row = row + dim;  // [dim] the own positive, then sums
  widen_row(row_at(args.positive, args.dtype, args.positive_stride, q), args.dtype, dim, own_row);
  const float* packed = sweep.packed + block * dim * WIDTH;
  const float own = own_score(own_row, packed, lane, dim);
  if (!std::isfinite(own) || is_spoilt(sweep, block, lane)) return write_nan(sweep, q, out);
  float top = own, positive_top = LOWEST;
  bool others = false;
  for (int64_t c = 0; c < sweep.chunks; ++c) {
    const Partial part = sweep.partial(block, c);
    top = part.top[lane] > top ? part.top[lane] : top;
    if (part.positive_mass[lane] > 0) {
      others = true;
      positive_top = part.positive_top[lane] > positive_top ? part.positive_top[lane] : positive_top;
    }
  }
  const bool own_positive = !args.use_own || args.use_own[q] || !others;
  if (own_positive && own > positive_top) positive_top = own;
  float mass = std::exp((own - top) * sweep.scale);
  float positive_mass = own_positive ? std::exp((own - positive_top) * sweep.scale) : 0.0f;
  const float own_mass = mass, own_positive_mass = positive_mass;
  for (int64_t c = 0; c < sweep.chunks; ++c) {
    const Partial part = sweep.partial(block, c);
    mass += part.mass[lane] * std::exp((part.top[lane] - top) * sweep.scale);
    if (part.positive_mass[lane] > 0)
      positive_mass +=
          part.positive_mass[lane] * std::exp((part.positive_top[lane] - positive_top) * sweep.scale);
  }
  const float log_mass = std::log(mass), log_positive = std::log(positive_mass);
  const float gap = (top - positive_top) * sweep.scale;
  out.loss[q] = (gap < FLT_MAX ? gap : FLT_MAX) + (log_mass - log_positive);
  out.lse_all[q] = top * sweep.scale + log_mass;
  out.lse_positive[q] = positive_top * sweep.scale + log_positive;
  const float own_weight = own_mass / mass - own_positive_mass / positive_mass;
  out.own_weight[q] = own_weight;
  if (sweep.stats) write_stats(sweep, q, own_positive, out.stats + q * 3);
  if (!sweep.gradient) return;
  for (int64_t d = 0; d < dim; ++d) row[d] = own_weight * own_row[d];
  for (int64_t c = 0; c < sweep.chunks; ++c) {
    const Partial part = sweep.partial(block, c);
    const float share = std::exp((part.top[lane] - top) * sweep.scale) / mass;
    for (int64_t d = 0; d < dim; ++d) row[d] += share * part.attended[d * WIDTH + lane];
    if (!(part.positive_mass[lane] > 0)) continue;
    const float positive_share =
        std::exp((part.positive_top[lane] - positive_top) * sweep.scale) / positive_mass;
    for (int64_t d = 0; d < dim; ++d) row[d] -= positive_share * part.positive_attended[lane * dim + d];
  }
  for (int64_t d = 0; d < dim; ++d) out.grad_query[q * dim + d] = row[d] * sweep.scale;
}

bool mil_nce_sweep(const LossArgs& args, const LossOut& out) {
  const auto finish = [&out](const Sweep& sweep, int64_t q, float* row) { combine(sweep, q, row, out); };
  const Wanted wanted{out.grad_query != nullptr, out.stats != nullptr};
  return args.drawn() ? sweep_all_drawn(args, wanted, finish) : sweep_keys(args, wanted, finish);
}

// The chunks' sums of one query over this share of the keys, in order; its own pair is left to others.
void merge_chunks(const Sweep& sweep, int64_t q, const LossShare& out) {
  const int64_t block = q / WIDTH, dim = sweep.args.dim;
  const int lane = static_cast<int>(q % WIDTH);
  float top = LOWEST, mass = 0, positive_top = LOWEST, positive_mass = 0;
  for (int64_t c = 0; c < sweep.chunks; ++c) {
    const Partial part = sweep.partial(block, c);
    if (part.mass[lane] > 0 && part.top[lane] > top) top = part.top[lane];
    if (part.positive_mass[lane] > 0 && part.positive_top[lane] > positive_top)
      positive_top = part.positive_top[lane];
  }
  float* attended = out.attended + (sweep.gradient ? q * 2 * dim : 0);
  for (int64_t d = 0; sweep.gradient && d < 2 * dim; ++d) attended[d] = 0;
  for (int64_t c = 0; c < sweep.chunks; ++c) {
    const Partial part = sweep.partial(block, c);
    if (part.mass[lane] > 0) {
      const float share = std::exp((part.top[lane] - top) * sweep.scale);
      mass += part.mass[lane] * share;
      for (int64_t d = 0; sweep.gradient && d < dim; ++d)
        attended[d] += share * part.attended[d * WIDTH + lane];
    }
    if (part.positive_mass[lane] > 0) {
      const float share = std::exp((part.positive_top[lane] - positive_top) * sweep.scale);
      positive_mass += part.positive_mass[lane] * share;
      for (int64_t d = 0; sweep.gradient && d < dim; ++d)
        attended[dim + d] += share * part.positive_attended[lane * dim + d];
    }
  }
  float sums[4] = {top, mass, positive_top, positive_mass};
  if (is_spoilt(sweep, block, lane)) {
    for (float& sum : sums) sum = NAN;
    for (int64_t d = 0; sweep.gradient && d < 2 * dim; ++d) attended[d] = NAN;
  }
  std::memcpy(out.sums + q * 4, sums, sizeof sums);
  if (!sweep.stats) return;
  int32_t keys[BEST];
  const BestOfQuery best{out.best + q * BEST, keys, 1};
  best.clear();
  out.ranks[q * 2] = static_cast<int32_t>(merge_ranks(sweep, q, best));
  out.ranks[q * 2 + 1] = 0;
  for (int i = 0; i < BEST; ++i)
    if (keys[i] != NONE && is_positive(sweep.args, q, keys[i], false)) out.ranks[q * 2 + 1] |= 1 << i;
}

bool mil_nce_share(const LossArgs& args, const LossShare& out) {
  const auto finish = [&out](const Sweep& sweep, int64_t q, float*) { merge_chunks(sweep, q, out); };
  return sweep_keys(args, {out.attended != nullptr, out.ranks != nullptr}, finish);
}

// d loss / d logit of a panel against one block, scaled by grad_loss / T: in place of the scores.
void weigh_panel(const Sweep& sweep, const PanelKeys& keys, const PanelMemory& m, int64_t block,
                 const float* grad_loss, const float* lse_all, const float* lse_positive) {
  const LossArgs& args = sweep.args;
  const SiblingFinder finder(args, block * WIDTH);
  const Pair* pair = sweep.pairs_of(block);
  const Pair* end = pair + sweep.pair_count[block];
  while (pair < end && pair->key < keys.first) ++pair;
  for (int64_t j = 0; j < keys.count; ++j) {
    float* row = m.scores + j * WIDTH;
    uint64_t positive = 0, left_out = 0;
    for (; pair < end && pair->key == keys.first + j; ++pair) positive |= uint64_t{1} << pair->lane;
    if (args.key_ids && finder.query_ids && m.filled[j] && args.siblings != 0) {
      const uint64_t same = finder.find(args.key_ids[keys.first + j], m.hash[j]);
      (args.siblings == 1 ? positive : left_out) |= same;
    }
    const bool empty = args.key_ids && !m.filled[j];
    for (int64_t lane = 0; lane < WIDTH; ++lane) {
      const int64_t q = block * WIDTH + lane;
      const uint64_t bit = uint64_t{1} << lane;
      if (q >= args.num_queries || empty || (left_out & bit)) {
        row[lane] = 0;
        continue;
      }
      const float logit = row[lane] * sweep.scale;
      float weight = std::exp(logit - lse_all[q]);
      if (positive & bit) weight -= std::exp(logit - lse_positive[q]);
      row[lane] = weight * grad_loss[q] * sweep.scale;
    }
  }
}

// grad [count, dim] of a panel's keys, summed over the queries in order; queries: room [WIDTH, dim].
void grade_panel(const Sweep& sweep, int64_t first, int64_t count, PanelMemory& m, float* queries,
                 const float* grad_loss, const float* lse_all, const float* lse_positive, float* grad) {
  const LossArgs& args = sweep.args;
  const PanelKeys keys = load_keys(args, first, count, m);
  std::memset(grad, 0, sizeof(float) * static_cast<size_t>(count * args.dim));
  for (int64_t b = 0; b < sweep.blocks; ++b) {
    score_keys(keys, sweep.packed + b * args.dim * WIDTH, args.dim, m.scores);
    weigh_panel(sweep, keys, m, b, grad_loss, lse_all, lse_positive);
    const int64_t lanes = args.num_queries - b * WIDTH < WIDTH ? args.num_queries - b * WIDTH : WIDTH;
    for (int64_t i = 0; i < lanes; ++i) {
      float* query = queries + i * args.dim;
      widen_row(row_at(args.query, args.dtype, args.query_stride, b * WIDTH + i), args.dtype, args.dim,
                query);
      if (std::isnan(lse_all[b * WIDTH + i]))
        keep_finite(query, args.dim, query);  // its weights are NaN or 0
    }
    for (int64_t j = 0; j < count; ++j)
      for (int64_t i = 0; i < lanes; ++i) {
        const float weight = m.scores[j * WIDTH + i];
        float* out = grad + j * args.dim;
        const float* query = queries + i * args.dim;
        for (int64_t d = 0; d < args.dim; ++d) out[d] += weight * query[d];
      }
  }
}

bool mil_nce_keys_gradient(const LossArgs& args, const float* grad_loss, const float* lse_all,
                           const float* lse_positive, float* grad_keys) {
  if (args.drawn()) return drawn_keys_gradient(args, grad_loss, lse_all, lse_positive, grad_keys);
  Sweep sweep = plan_sweep(args, {false, false});
  return in_every_thread(sweep, false, WIDTH * args.dim, [&](PanelMemory& m, float* queries) {
#pragma omp for schedule(dynamic)
    for (int64_t first = 0; first < args.num_keys; first += LOSS_PANEL)
      grade_panel(sweep, first, args.num_keys - first < LOSS_PANEL ? args.num_keys - first : LOSS_PANEL, m,
                  queries, grad_loss, lse_all, lse_positive, grad_keys + first * args.dim);
  });
}

LossPlan describe_plan(const LossArgs& args) {
  const Sweep sweep = plan_sweep(args, {false, false});
  return {W, WIDTH, sweep.blocks, sweep.chunks};
}

}  // namespace

extern const LossKernels loss_kernels;
const LossKernels loss_kernels = {mil_nce_sweep, mil_nce_keys_gradient, mil_nce_share, describe_plan};

}  // namespace CPR_ISA_NAMESPACE
}  // namespace cpr
