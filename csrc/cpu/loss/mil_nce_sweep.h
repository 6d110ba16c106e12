// The sweep over the keys that cpr::mil_nce is made of, compiled once per instruction set: the sums of a
// block of queries over chunks of the keys. Scores stay in layout [key, query lane]; the softmax runs online;
// nothing of size B x N exists.
#pragma once
#include <cfloat>
#include <cstdlib>

#include "../select/radix_sort.h"
#include "../workspace.h"
#include "mil_nce_stats.h"

namespace cpr {
namespace CPR_ISA_NAMESPACE {

constexpr int64_t MAX_CHUNKS = 16;
constexpr float LOWEST = -FLT_MAX;

// e^x for x <= 0, to about one unit in the last place; 0 below -87. (Cephes' polynomial.)
inline F exp_nonpositive(F x) {
  const Mask live = ge(x, set1(-87.0f));
  x = max(x, set1(-87.0f));
  const F n = round_even(mul(x, set1(1.44269504088896341f)));
  F r = fma(n, set1(-0.693359375f), x);
  r = fma(n, set1(2.12194440e-4f), r);
  F p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = add(fma(p, mul(r, r), r), set1(1.0f));
  return select(live, scale_by_power(p, n), zero());
}

// A listed positive: key, and the query's lane in its block; of drawn entries (mil_nce_drawn.h), 1 for a
// positive.
struct Pair {
  int32_t key;
  int32_t lane;
};

// Sums of one block of queries over one chunk of keys. Maxima are kept as scores, before the temperature.
struct Partial {
  float* top;           // [WIDTH] highest score so far
  float* mass;          // [WIDTH] sum of exp((score - top) / T)
  float* attended;      // [dim, WIDTH] the same sum weighting the keys
  float* positive_top;  // [WIDTH], likewise over the positives
  float* positive_mass;
  float* positive_attended;  // [WIDTH, dim]
  float* spoilt;             // [WIDTH] 1: a score that takes part is NaN or infinite

  static int64_t floats(int64_t dim, bool gradient) { return 5 * WIDTH + (gradient ? 2 * dim * WIDTH : 0); }
  static Partial at(float* memory, int64_t dim) {
    return {memory,
            memory + WIDTH,
            memory + 5 * WIDTH,
            memory + 2 * WIDTH,
            memory + 3 * WIDTH,
            memory + 5 * WIDTH + dim * WIDTH,
            memory + 4 * WIDTH};
  }
};

// What a call wants of a sweep beside the loss.
struct Wanted {
  bool gradient, stats;
};

struct Sweep {
  const LossArgs& args;
  bool gradient;
  float scale;  // 1 / temperature
  int64_t blocks, chunks, chunk_size;
  bool stats;
  float* packed;        // [blocks][dim, WIDTH]
  Pair* pairs;          // [blocks][WIDTH * P], by key; drawn: [B][P + M]
  int64_t* pair_count;  // [blocks]; drawn: [B]
  float* partials;      // [blocks, chunks]
  float* own;           // [blocks][WIDTH] scores of the own pairs, where statistics are wanted

  int64_t partial_floats() const {
    return round_up(Partial::floats(args.dim, gradient) + (stats ? BlockRanks::floats() : 0), 16);
  }
  float* partial_memory(int64_t block, int64_t chunk) const {
    return partials + (block * chunks + chunk) * partial_floats();
  }
  Partial partial(int64_t block, int64_t chunk) const {
    return Partial::at(partial_memory(block, chunk), args.dim);
  }
  BlockRanks ranks(int64_t block, int64_t chunk) const {
    return BlockRanks::at(partial_memory(block, chunk) + Partial::floats(args.dim, gradient));
  }
  int64_t listed() const { return args.num_positives + (args.drawn() ? args.num_negatives : 0); }
  const Pair* pairs_of(int64_t block) const { return pairs + block * WIDTH * args.num_positives; }

  void prepare(int64_t block) const {
    const View view{args.query, args.keys, args.query_stride, args.key_stride, args.dim};
    const int64_t first = block * WIDTH, left = args.num_queries - first;
    pack_queries(view, args.dtype, first, left, WIDTH, packed + block * args.dim * WIDTH);
    if (!args.drawn())
      pair_count[block] =
          list_pairs(first, left < WIDTH ? left : WIDTH, pairs + block * WIDTH * args.num_positives);
  }

  // The own pairs' scores of a block; room: [dim].
  void score_own(int64_t block, float* room) const {
    for (int lane = 0; lane < WIDTH; ++lane) {
      const int64_t q = block * WIDTH + lane;
      float& score = own[q];
      score = 0;
      if (q >= args.num_queries) continue;
      if (args.own) {
        score = args.own[q];
        continue;
      }
      widen_row(row_at(args.positive, args.dtype, args.positive_stride, q), args.dtype, args.dim, room);
      score = own_score(room, packed + block * args.dim * WIDTH, lane, args.dim);
    }
  }

  // The block's listed positives by (key, lane), each once; those that ids make positive are left to the
  // sweep.
  int64_t list_pairs(int64_t first, int64_t lanes, Pair* out) const {
    int64_t n = 0;
    for (int64_t lane = 0; lane < lanes; ++lane) {
      for (int64_t p = 0; p < args.num_positives; ++p) {
        const int64_t key = args.positives[(first + lane) * args.num_positives + p];
        if (key < 0 || key >= args.num_keys) continue;
        if (args.key_ids) {
          if (args.key_ids[key] < 0) continue;
          const bool sibling = args.query_ids && args.key_ids[key] == args.query_ids[first + lane];
          if (sibling && args.siblings != 0) continue;
        }
        out[n++] = {static_cast<int32_t>(key), static_cast<int32_t>(lane)};
      }
    }
    sort_pairs(reinterpret_cast<uint64_t*>(out), n);
    int64_t kept = 0;
    for (int64_t i = 0; i < n; ++i)
      if (kept == 0 || out[i].key != out[kept - 1].key || out[i].lane != out[kept - 1].lane)
        out[kept++] = out[i];
    return kept;
  }

  static void sort_pairs(uint64_t* pairs, int64_t n) {
    const auto swap_halves = [&] {
      for (int64_t i = 0; i < n; ++i) pairs[i] = (pairs[i] << 32) | (pairs[i] >> 32);  // key first, or back
    };
    swap_halves();
    sort_ranking_keys(pairs, n, nullptr);
    swap_halves();
  }
};

// A panel with scores that are not finite: marks every lane whose query such a key takes part in, and gives
// the key no weight. Returns the panel with finite features, so that a weight of 0 adds 0.
inline PanelKeys leave_out_non_finite(const LossArgs& args, const PanelKeys& keys, PanelMemory& m,
                                      const SiblingFinder& finder, const Partial& out) {
  for (int64_t j = 0; j < keys.count; ++j) {
    uint64_t left_out = 0;
    if (args.key_ids && !m.filled[j])
      left_out = ~uint64_t{0};
    else if (args.key_ids && finder.query_ids && args.siblings == 2)
      left_out = finder.find(args.key_ids[keys.first + j], m.hash[j]);
    float* row = m.scores + j * WIDTH;
    for (int lane = 0; lane < WIDTH; ++lane) {
      if (std::isfinite(row[lane])) continue;
      row[lane] = -INFINITY;
      if (!(left_out >> lane & 1)) out.spoilt[lane] = 1.0f;
    }
    keep_finite(keys.rows + j * keys.stride, args.dim, m.wide + j * args.dim);
  }
  return {m.wide, args.dim, keys.first, keys.count};
}

// Take one positive of one lane into the running sums.
inline void add_positive(const Sweep& sweep, const Partial& out, int lane, float score, const float* key) {
  const int64_t dim = sweep.args.dim;
  float* attended = out.positive_attended + lane * dim;
  float& top = out.positive_top[lane];
  float weight = 1.0f;
  if (score > top) {
    const float shrink = out.positive_mass[lane] > 0 ? std::exp((top - score) * sweep.scale) : 0.0f;
    out.positive_mass[lane] = out.positive_mass[lane] * shrink + 1.0f;
    if (sweep.gradient)
      for (int64_t d = 0; d < dim; ++d) attended[d] *= shrink;
    top = score;
  } else {
    weight = std::exp((score - top) * sweep.scale);
    out.positive_mass[lane] += weight;
  }
  if (sweep.gradient)
    for (int64_t d = 0; d < dim; ++d) attended[d] += weight * key[d];
}

// Siblings of every lane: positives are taken, the left-out lose their score, negatives stay.
inline void apply_ids(const Sweep& sweep, const PanelKeys& keys, const PanelMemory& m,
                      const SiblingFinder& finder, const Partial& out) {
  const LossArgs& args = sweep.args;
  for (int64_t j = 0; j < keys.count; ++j) {
    float* row = m.scores + j * WIDTH;
    if (!m.filled[j]) {
      for (int i = 0; i < NR; ++i) store(row + i * W, set1(-INFINITY));
      continue;
    }
    if (!finder.query_ids || args.siblings == 0) continue;
    for (uint64_t same = finder.find(args.key_ids[keys.first + j], m.hash[j]); same; same &= same - 1) {
      const int lane = __builtin_ctzll(same);
      if (args.siblings == 1)
        add_positive(sweep, out, lane, row[lane], keys.rows + j * keys.stride);
      else
        row[lane] = -INFINITY;
    }
  }
}

// Online softmax: the panel's exponentials in place of its scores, sums brought to a common top.
inline void absorb(const Sweep& sweep, int64_t count, float* scores, const Partial& out) {
  const F scale = set1(sweep.scale);
  for (int i = 0; i < NR; ++i) {
    const F before = load(out.top + i * W);
    F top = before;
    for (int64_t j = 0; j < count; ++j) top = max(load(scores + j * WIDTH + i * W), top);
    const F shrink = exp_nonpositive(mul(sub(before, top), scale));
    F mass = zero();
    for (int64_t j = 0; j < count; ++j) {
      float* place = scores + j * WIDTH + i * W;
      const F weight = exp_nonpositive(mul(sub(load(place), top), scale));
      mass = add(mass, weight);
      store(place, weight);
    }
    store(out.mass + i * W, fma(load(out.mass + i * W), shrink, mass));
    store(out.top + i * W, top);
    if (!sweep.gradient || gt(top, before) == 0) continue;
    for (int64_t d = 0; d < sweep.args.dim; ++d) {
      float* place = out.attended + d * WIDTH + i * W;
      store(place, mul(load(place), shrink));
    }
  }
}

// attended [dim, WIDTH] += keys^T [dim, count] . weights [count, WIDTH]
inline void attend(const PanelKeys& keys, const float* weights, int64_t dim, float* attended) {
  constexpr int MR = rows_at_once<NR>();
  int64_t d = 0;
  for (; d + MR <= dim; d += MR)
    multiply<MR, NR>(keys.rows + d, 1, keys.stride, weights, WIDTH, keys.count, true, attended + d * WIDTH,
                     WIDTH);
  for (; d < dim; ++d)
    multiply<1, NR>(keys.rows + d, 1, keys.stride, weights, WIDTH, keys.count, true, attended + d * WIDTH,
                    WIDTH);
}

inline void sweep_chunk(const Sweep& sweep, int64_t block, int64_t chunk, PanelMemory& m) {
  const LossArgs& args = sweep.args;
  const Partial out = sweep.partial(block, chunk);
  std::memset(out.top, 0, sizeof(float) * static_cast<size_t>(Partial::floats(args.dim, sweep.gradient)));
  for (int i = 0; i < WIDTH; ++i) out.top[i] = out.positive_top[i] = LOWEST;
  if (sweep.stats) sweep.ranks(block, chunk).clear();
  const SiblingFinder finder(args, block * WIDTH);
  const Pair* pair = sweep.pairs_of(block);
  const Pair* pairs_end = pair + sweep.pair_count[block];
  const int64_t begin = chunk * sweep.chunk_size,
                end = begin + sweep.chunk_size < args.num_keys ? begin + sweep.chunk_size : args.num_keys;
  while (pair < pairs_end && pair->key < begin) ++pair;
  for (int64_t first = begin; first < end; first += LOSS_PANEL) {
    const int64_t count = end - first < LOSS_PANEL ? end - first : LOSS_PANEL;
    PanelKeys keys = load_keys(args, first, count, m);
    score_keys(keys, sweep.packed + block * args.dim * WIDTH, args.dim, m.scores);
    if (!all_finite(m.scores, count)) keys = leave_out_non_finite(args, keys, m, finder, out);
    for (; pair < pairs_end && pair->key < first + count; ++pair) {
      const int64_t j = pair->key - first;
      add_positive(sweep, out, pair->lane, m.scores[j * WIDTH + pair->lane], keys.rows + j * keys.stride);
    }
    if (args.key_ids) apply_ids(sweep, keys, m, finder, out);
    if (sweep.stats) sweep.ranks(block, chunk).take_panel(first, count, m.scores, sweep.own + block * WIDTH);
    absorb(sweep, count, m.scores, out);
    if (sweep.gradient) attend(keys, m.scores, args.dim, out.attended);
  }
}

inline Sweep plan_sweep(const LossArgs& args, Wanted wanted) {
  const int64_t blocks = (args.num_queries + WIDTH - 1) / WIDTH;
  // chunks depend on sizes alone, so the sums do not depend on the number of threads
  int64_t chunks = (MAX_CHUNKS + blocks - 1) / blocks;
  const int64_t panels = (args.num_keys + LOSS_PANEL - 1) / LOSS_PANEL;
  if (chunks > (panels + 7) / 8) chunks = (panels + 7) / 8;
  if (chunks < 1 || args.drawn()) chunks = 1;
  const int64_t chunk_size = round_up((args.num_keys + chunks - 1) / chunks, LOSS_PANEL);
  const float scale = 1.0f / args.temperature;
  return {args,         wanted.gradient, scale < FLT_MAX ? scale : FLT_MAX,
          blocks,       chunks,          chunk_size,
          wanted.stats, nullptr,         nullptr,
          nullptr,      nullptr,         nullptr};
}

// Shared memory of a call, and `thread_bytes` for each thread behind it; null when there is none to be had.
inline char* allocate(Sweep& sweep, bool with_partials, int64_t thread_bytes, char** threads_at) {
  const int64_t dim = sweep.args.dim;
  const int64_t packed = round_up(sweep.blocks * dim * WIDTH * 4, 64);
  const int64_t pairs = round_up(sweep.blocks * WIDTH * sweep.listed() * 8, 64);
  const int64_t counts = round_up((sweep.args.drawn() ? sweep.args.num_queries : sweep.blocks) * 8, 64);
  const int64_t own = sweep.stats ? round_up(sweep.blocks * WIDTH * 4, 64) : 0;
  const int64_t partials = with_partials ? sweep.blocks * sweep.chunks * sweep.partial_floats() * 4 : 0;
  const int64_t total =
      packed + pairs + counts + own + partials + round_up(thread_bytes, 64) * sweep.args.threads;
  char* memory = take_workspace(total);
  if (!memory) return nullptr;
  sweep.packed = reinterpret_cast<float*>(memory);
  sweep.pairs = reinterpret_cast<Pair*>(memory + packed);
  sweep.pair_count = reinterpret_cast<int64_t*>(memory + packed + pairs);
  sweep.own = reinterpret_cast<float*>(memory + packed + pairs + counts);
  sweep.partials = reinterpret_cast<float*>(memory + packed + pairs + counts + own);
  *threads_at = memory + packed + pairs + counts + own + partials;
  return memory;
}

// work(panel memory, own [own_floats]) in every thread, the queries packed and their positives listed before;
// loops over shared work in it are divided among the threads. False when memory ran out.
template <class Work>
bool in_every_thread(Sweep& sweep, bool with_partials, int64_t own_floats, const Work& work) {
  const LossArgs& args = sweep.args;
  const int64_t panel_bytes = PanelMemory::bytes(args.dim);
  const int64_t thread_bytes = panel_bytes + round_up(own_floats * 4, 64);
  char* per_thread;
  char* memory = allocate(sweep, with_partials, thread_bytes, &per_thread);
  if (!memory) return false;
  int next = 0;
#pragma omp parallel num_threads(args.threads) if (args.threads > 1)
  {
    const FloatEnvironment exact;
    int mine;
#pragma omp atomic capture
    mine = next++;
    char* place = per_thread + mine * thread_bytes;
    PanelMemory m;
    m.wide = reinterpret_cast<float*>(place);
    m.scores = m.wide + LOSS_PANEL * args.dim;
#pragma omp for schedule(static)
    for (int64_t b = 0; b < sweep.blocks; ++b) {
      sweep.prepare(b);
      if (sweep.stats) sweep.score_own(b, m.wide);
    }
    work(m, reinterpret_cast<float*>(place + panel_bytes));
  }
  give_back_workspace(memory);
  return true;
}

// The keys once, for all queries; then finish(sweep, q, row) of each query, with room [2 dim] for sums.
template <class Finish>
bool sweep_keys(const LossArgs& args, Wanted wanted, const Finish& finish) {
  Sweep sweep = plan_sweep(args, wanted);
  return in_every_thread(sweep, true, 2 * args.dim, [&](PanelMemory& m, float* row) {
#pragma omp for schedule(dynamic)
    for (int64_t t = 0; t < sweep.blocks * sweep.chunks; ++t)
      sweep_chunk(sweep, t / sweep.chunks, t % sweep.chunks, m);
#pragma omp for schedule(static)
    for (int64_t q = 0; q < args.num_queries; ++q) finish(sweep, q, row);
  });
}

}  // namespace CPR_ISA_NAMESPACE
}  // namespace cpr
