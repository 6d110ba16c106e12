// The shard's half of a cascade over several processes, compiled once per instruction set. Scores are those
// of cascade_topk.cpp, bit for bit: the same tiles, chains and mixes.
#include "../../shard.h"

#include <cstdlib>

#include "../kernels.h"
#include "../scores/mix.h"
#include "filter.h"
#include "plan.h"

namespace cpr {
namespace CPR_ISA_NAMESPACE {
namespace {

constexpr int64_t PANEL = 512;  // keys scored and filtered at a time
constexpr int64_t ROW = PANEL + 16;
constexpr int64_t TOGETHER = 64;  // queries that share a visit of the keys

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

struct Collector {
  const CascadeArgs& args;
  const CascadePlan& plan;
  const EntryLists& out;
  int64_t total_dim, max_dim;

  int64_t slots() const { return args.num_views + plan.mixes; }
  float* row(int64_t q, int r) const { return out.scores + (q * out.rows + r) * out.pitch; }
};

// One thread's working memory.
struct Memory {
  float* packed;  // [V][blocks][dim, width]
  float* wide;    // one tile of keys in float32
  float* scores;  // [slots, TOGETHER, ROW]
  float* bias;    // [PANEL] of the panel's keys, where a mix has it
  int32_t* hash;  // [PANEL]
  uint8_t* filled;

  static int64_t bytes(const Collector& c) {
    return round_up(
        4 * (TOGETHER * c.total_dim + TILE * c.max_dim + c.slots() * TOGETHER * ROW + 2 * ROW) + ROW, 64);
  }
  static Memory at(char* memory, const Collector& c) {
    Memory m;
    m.scores = reinterpret_cast<float*>(memory);
    m.packed = m.scores + c.slots() * TOGETHER * ROW;
    m.wide = m.packed + TOGETHER * c.total_dim;
    m.bias = m.wide + TILE * c.max_dim;
    m.hash = reinterpret_cast<int32_t*>(m.bias + ROW);
    m.filled = reinterpret_cast<uint8_t*>(m.hash + ROW);
    return m;
  }
};

// The mixed rows of a panel's scores for the queries in `lanes`.
void mix(const Collector& c, const Panel& panel, int64_t lanes, const Memory& m) {
  const int64_t slot = TOGETHER * ROW;
  const int views = c.args.num_views;
  if (c.plan.biased_mix >= 0)
    gather_bias(
        c.args.key_bias, panel.count, [&](int64_t i) { return panel.key(i); }, m.bias);
  for (int x = 0; x < c.plan.mixes; ++x)
    for (int64_t q = 0; q < lanes; ++q)
      mix_scores(c.plan.mix_weights + x * views, views, m.scores + q * ROW, slot, panel.count,
                 x == c.plan.biased_mix ? m.bias : nullptr, m.scores + (views + x) * slot + q * ROW);
}

// Entries of a panel that query q may select, appended at place `n` of its list; how many it then holds.
int64_t append(const Collector& c, const Panel& panel, int64_t q, int64_t lane, const Eligibility& eligible,
               const float* scores, int64_t n) {
  const bool all = eligible.everything();
  for (int64_t i = 0; i < panel.count; i += W) {
    const auto score = [&](int r) {
      return load(scores + (c.plan.slot_of_row[r] * TOGETHER + lane) * ROW + i);
    };
    const Mask eligibles = all ? first_lanes(panel.count - i) : eligible.lanes(panel, q, i);
    const Mask alive = without_nan(eligibles, c.plan.rows, score);
    const I order = front_order(alive);
    for (int r = 0; r < c.plan.rows; ++r) store(c.row(q, r) + n, ordered(order, score(r)));
    store(c.out.index + q * c.out.pitch + n, ordered(order, iota(static_cast<int32_t>(panel.first + i))));
    n += count(alive);
  }
  return n;
}

// Keys [begin, end) for queries [first, first + TOGETHER): listed from place `begin` on, their number in
// found.
template <int NR>
void collect_part(const Collector& c, int64_t first, int64_t begin, int64_t end, const Memory& m,
                  int64_t* found) {
  constexpr int width = NR * W;
  const int64_t left = c.args.num_queries - first, queries = left < TOGETHER ? left : TOGETHER;
  const int blocks = static_cast<int>((queries + width - 1) / width);
  float* place = m.packed;
  for (int v = 0; v < c.args.num_views; ++v)
    for (int b = 0; b < blocks; ++b, place += c.args.views[v].dim * width)
      pack_queries(c.args.views[v], c.args.dtype, first + b * width, queries - b * width, width, place);
  const Eligibility eligible{&c.args, m.hash, m.filled};
  for (int64_t i = 0; i < queries; ++i) found[i] = begin;
  for (int64_t at = begin; at < end; at += PANEL) {
    const Panel panel{nullptr, at, end - at < PANEL ? end - at : PANEL};
    const float* packed = m.packed;
    for (int v = 0; v < c.args.num_views; ++v) {
      if (c.plan.view_used[v])
        score_panel<NR>(c.args.views[v], c.args.dtype, panel, packed, blocks, m.wide,
                        m.scores + v * TOGETHER * ROW, ROW);
      packed += blocks * c.args.views[v].dim * width;
    }
    mix(c, panel, blocks * width, m);
    eligible.load_panel(panel);
    for (int64_t i = 0; i < queries; ++i)
      found[i] = append(c, panel, first + i, i, eligible, m.scores, found[i]);
  }
  for (int64_t i = 0; i < queries; ++i) found[i] -= begin;
}

// The parts of a query's list moved together.
void join(const Collector& c, int64_t q, const int64_t* found, int64_t parts, int64_t part_size) {
  int64_t n = found[0];
  for (int64_t p = 1; p < parts; ++p) {
    const int64_t from = p * part_size;
    const size_t bytes = static_cast<size_t>(found[p]) * 4;
    for (int r = 0; r < c.plan.rows && from != n; ++r)
      std::memmove(c.row(q, r) + n, c.row(q, r) + from, bytes);
    int32_t* index = c.out.index + q * c.out.pitch;
    if (from != n) std::memmove(index + n, index + from, bytes);
    n += found[p];
  }
  c.out.length[q] = n;
}

template <int NR>
bool collect(const Collector& c) {
  const int threads = c.out.threads > 1 ? c.out.threads : 1;
  const int64_t panels = (c.args.num_keys + PANEL - 1) / PANEL,
                groups = (c.args.num_queries + TOGETHER - 1) / TOGETHER;
  int64_t parts = groups >= 4 * threads ? 1 : threads;
  if (parts > panels) parts = panels < 1 ? 1 : panels;
  const int64_t part_size = (panels + parts - 1) / parts * PANEL, bytes = Memory::bytes(c);
  // parts are whole panels, so no write reaches beyond its part
  int64_t* found = static_cast<int64_t*>(std::malloc(static_cast<size_t>(groups * TOGETHER * parts) * 8));
  char* memory = static_cast<char*>(std::aligned_alloc(64, static_cast<size_t>(bytes * threads)));
  if (found && memory) {
    int next = 0;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      const FloatEnvironment exact;
      int mine;
#pragma omp atomic capture
      mine = next++;
      const Memory m = Memory::at(memory + mine * bytes, c);
#pragma omp for schedule(dynamic)
      for (int64_t t = 0; t < groups * parts; ++t) {
        const int64_t group = t / parts, part = t % parts, begin = part * part_size;
        int64_t local[TOGETHER] = {};
        const int64_t end = begin + part_size < c.args.num_keys ? begin + part_size : c.args.num_keys;
        if (begin < end) collect_part<NR>(c, group * TOGETHER, begin, end, m, local);
        for (int64_t i = 0; i < TOGETHER; ++i) found[(group * TOGETHER + i) * parts + part] = local[i];
      }
#pragma omp for schedule(static)
      for (int64_t q = 0; q < c.args.num_queries; ++q) join(c, q, found + q * parts, parts, part_size);
    }
  }
  const bool done = found && memory;
  std::free(found);
  std::free(memory);
  return done;
}

bool collect_entries(const CascadeArgs& args, const CascadePlan& plan, const EntryLists& out) {
  Collector c{args, plan, out, 0, 1};
  for (int v = 0; v < args.num_views; ++v) {
    c.max_dim = args.views[v].dim > c.max_dim ? args.views[v].dim : c.max_dim;
    c.total_dim += args.views[v].dim;
  }
  return args.num_queries <= W ? collect<1>(c) : collect<2>(c);
}

// Keys of `list` [n] that share the prefix, moved to `out`.
template <class KeyAt>
int64_t matching(KeyAt key_at, int64_t n, int above, uint32_t prefix, uint32_t* out) {
  int64_t kept = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t key = key_at(i);
    out[kept] = key;
    kept += (key >> above) == prefix;
  }
  return kept;
}

// Four tables side by side, so that equal digits in a row do not wait for each other.
template <class KeyAt>
void tally(KeyAt key_at, int64_t n, int shift, int bits, int32_t* counts) {
  int32_t tables[4][256] = {};
  const uint32_t mask = (1u << bits) - 1;
  for (int64_t i = 0; i < n; ++i) ++tables[i & 3][(key_at(i) >> shift) & mask];
  for (uint32_t d = 0; d <= mask; ++d) counts[d] = tables[0][d] + tables[1][d] + tables[2][d] + tables[3][d];
}

void count_digits(const EntryLists& lists, int row, const DigitSearch& search, int32_t* counts) {
#pragma omp parallel for schedule(dynamic) num_threads(lists.threads) if (lists.threads > 1)
  for (int64_t q = 0; q < lists.num_queries; ++q) {
    const FloatEnvironment exact;
    const float* scores = lists.scores + (q * lists.rows + row) * lists.pitch;
    uint32_t* matched = search.matching + q * lists.pitch;
    const auto of_scores = [scores](int64_t i) { return ascending_key(scores[i]); };
    const auto of_matched = [matched](int64_t i) { return matched[i]; };
    int32_t* out = counts + (q << search.bits);
    if (search.step == 0) {
      tally(of_scores, lists.length[q], search.shift, search.bits, out);
      continue;
    }
    const int above = search.shift + search.bits;
    const uint32_t prefix = static_cast<uint32_t>(search.prefix[q]);
    search.matches[q] = search.step == 1 ? matching(of_scores, lists.length[q], above, prefix, matched)
                                         : matching(of_matched, search.matches[q], above, prefix, matched);
    tally(of_matched, search.matches[q], search.shift, search.bits, out);
  }
}

// The lowest `n` lanes of a mask.
Mask lowest_lanes(Mask mask, int64_t n) {
  if (count(mask) <= n) return mask;
  Mask kept = 0;
  for (; n > 0; --n) {
    const Mask lane = static_cast<Mask>(mask & (~mask + 1));
    kept = static_cast<Mask>(kept | lane);
    mask = static_cast<Mask>(mask & ~lane);
  }
  return kept;
}

void keep_above(const EntryLists& lists, int row, const int32_t* cuts, const int32_t* ties) {
#pragma omp parallel for schedule(dynamic) num_threads(lists.threads) if (lists.threads > 1)
  for (int64_t q = 0; q < lists.num_queries; ++q) {
    if (ties[q] < 0) continue;
    const FloatEnvironment exact;
    const F cut = set1(score_of_ascending(static_cast<uint32_t>(cuts[q])));
    float* scores = lists.scores + q * lists.rows * lists.pitch;
    int32_t* index = lists.index + q * lists.pitch;
    int64_t kept = 0, left = ties[q];
    for (int64_t i = 0; i < lists.length[q]; i += W) {
      const F score = load(scores + row * lists.pitch + i);
      const Mask lanes = first_lanes(lists.length[q] - i);
      const Mask tied = lowest_lanes(static_cast<Mask>(eq(score, cut) & lanes), left);
      left -= count(tied);
      const Mask mask = static_cast<Mask>((gt(score, cut) & lanes) | tied);
      const I order = front_order(mask);
      for (int r = 0; r < lists.rows; ++r) {
        float* place = scores + r * lists.pitch;
        store(place + kept, ordered(order, load(place + i)));
      }
      store(index + kept, ordered(order, load(index + i)));
      kept += count(mask);
    }
    lists.length[q] = kept;
  }
}

}  // namespace

extern const ShardKernels shard_kernels;
const ShardKernels shard_kernels = {collect_entries, count_digits, keep_above};

}  // namespace CPR_ISA_NAMESPACE
}  // namespace cpr
