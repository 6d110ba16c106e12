// The scores of one query as the score kernels leave them: rows that stages judge by, mixed where they weigh,
// and their ranges.
#pragma once
#include "bins.h"
#include "layout.h"

namespace cpr {

struct SelectArgs : Weightings {
  static constexpr bool IN_SHARED = false;
  float* scores;  // [planes][queries, pitch]: of the views, NaN where an entry may never be selected; then of
                  // mixed rows
  int64_t plane_stride, pitch;
  uint8_t plane[MAX_ROWS];  // of each row: its view, or, from num_views on, where its mix is written
  bool mixes;               // is there any row that is no view?
  const float* key_bias;    // of the weighting `biased`: [num_keys], or [queries, pitch]; on 16 bytes
  bool bias_a_query;        // the latter
  uint32_t num_keys, num_queries;
  uint32_t longest;  // of the lists: what the first stage keeps, a multiple of 4
  uint32_t* lists;   // [queries][rows + 1, longest], null when shared memory holds the longest list
  uint64_t* sorts;   // [queries][sort_size], null when results are short
  int64_t sort_size;
  uint32_t shared_entries;  // what the list in shared memory holds, a multiple of 4
  uint32_t paired;          // stages that are decided with the one before by the same codes, a bit each
  uint32_t coded_entries;   // the same of the first of two lists of codes; 0 where none are used
  int64_t k;
  int64_t* indices;  // out [queries, k]
  float* best;       // out [queries, k]
};

// The same where a block has the scores of its one query, [planes][plane_stride], at the beginning of its
// shared memory.
struct SelectSharedArgs : SelectArgs {
  static constexpr bool IN_SHARED = true;
};

// The scores of a query in one plane.
template <class Args>
CPR_DEVICE float* plane_of(const Args& args, int plane, uint32_t query) {
  CPR_SHARED_MEMORY(shared);
  if constexpr (Args::IN_SHARED) return reinterpret_cast<float*>(shared) + plane * args.plane_stride;
  return args.scores + plane * args.plane_stride + query * args.pitch;
}

// The entries of one query as the ring holds them, judged by one row. An entry that is NaN by any row is
// absent; unless `careful`, only the row that judges is asked, for few are absent by another one alone.
template <class Args>
struct Ring {
  const Args& args;
  uint32_t query;
  int judge, beside;  // the row that judges, and the other of two, or the first other
  bool careful;
  const float *own, *other;

  CPR_DEVICE Ring(const Args& args, uint32_t query, int judge, bool careful)
      : args(args),
        query(query),
        judge(judge),
        beside(args.rows == 1 ? judge : judge == 0),
        careful(careful),
        own(row(judge)),
        other(row(beside)) {}
  CPR_DEVICE float* row(int r) const { return plane_of(args, args.plane[r], query); }
  // Judges by the other of two rows.
  CPR_DEVICE void turn() {
    const float* const judged = own;
    const int row = judge;
    own = other, other = judged, judge = beside, beside = row;
  }
  CPR_DEVICE uint32_t size() const { return args.num_keys; }
  CPR_DEVICE Four judged(uint32_t first, Four& beside) const {
    Four four = load_four(own + first);
    beside = load_four(other + first);
    mark_absent(four, beside);
    if (args.rows > 2)
#pragma unroll 1
      for (int r = 0; r < args.rows; ++r) mark_absent(four, load_four(row(r) + first));
    return four;
  }
  CPR_DEVICE Four judged(uint32_t first) const {
    Four beside;
    return careful ? judged(first, beside) : load_four(own + first);
  }
  CPR_DEVICE uint32_t index(uint32_t at) const { return at; }
  CPR_DEVICE uint32_t word(int r, uint32_t at) const { return r == args.rows ? at : bits_of(row(r)[at]); }

 private:
  CPR_DEVICE static void mark_absent(Four& four, const Four& other) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (unordered(four.of[i], other.of[i])) four.of[i] = float_of(ABSENT);
  }
};

// Views as rows weigh them, for those that do not take one as it is: weighted and added in order, then the
// bias, every step rounded. Scores beyond the last key, of the four that it is in, are absent. Two barriers
// where there is anything to do.
template <class Args>
CPR_DEVICE void mix_rows(const Team& team, const Args& args, uint32_t query) {
  const uint32_t n = args.num_keys, thread = static_cast<uint32_t>(team.thread());
  if (!args.mixes && n % 4 == 0) return;
  float* scores = plane_of(args, 0, query);
  if (n + thread < (n + 3) / 4 * 4)
#pragma unroll 1
    for (int v = 0; v < args.num_views; ++v) scores[v * args.plane_stride + n + thread] = float_of(ABSENT);
  team.sync();
#pragma unroll 1
  for (int r = 0; r < args.rows; ++r) {
    if (args.plane[r] < args.num_views) continue;
    const float* bias = args.key_bias + (args.bias_a_query ? query * args.pitch : 0);
#pragma unroll 1
    for (uint32_t at = thread; at < (n + 3) / 4 * 4; at += static_cast<uint32_t>(team.threads)) {
      float total = 0.0f;
      bool started = false;
#pragma unroll 1
      for (int v = 0; v < args.num_views; ++v) {
        const float weight = args.weights[r * args.num_views + v];
        if (weight == 0.0f) continue;
        const float term = product(scores[v * args.plane_stride + at], weight);
        total = started ? plus(total, term) : term;
        started = true;
      }
      if (r == args.biased && at < n) total = plus(total, bias[at]);
      scores[args.plane[r] * args.plane_stride + at] = total;
    }
  }
  team.sync();
}

// The range of each row's scores, from some of them. One barrier, and another before they may be read.
template <class Args>
CPR_DEVICE void find_ranges(const Team& team, SelectMemory& memory, const Ring<Args>& ring) {
  const uint32_t n = ring.size(), apart = n > SAMPLERS * 32 ? n / (SAMPLERS * 32) : 1;
  const uint32_t at = static_cast<uint32_t>(team.thread()) * apart;
  if (team.warp() < SAMPLERS)
#pragma unroll 1
    for (int r = 0; r < ring.args.rows; ++r) {
      uint32_t key = 0;
      if (at < n) key = key_or_none(ring.row(r)[at]);
      const uint32_t most = warp_max(key), least = warp_max(key ? ~key : 0u);
      if (team.lane() == 0) {
        memory.sampled[r][0][team.warp()] = most;
        memory.sampled[r][1][team.warp()] = least;
      }
    }
  team.sync();
  if (team.thread() < ring.args.rows) {
    uint32_t most = 0, least = 0;  // keys, the latter turned
#pragma unroll 1
    for (int w = 0; w < SAMPLERS; ++w) {
      most = greater(most, memory.sampled[team.thread()][0][w]);
      least = greater(least, memory.sampled[team.thread()][1][w]);
    }
    set_range(memory.ranges[team.thread()], score_of_ascending(least ? ~least : LEAST_KEY),
              score_of_ascending(most ? most : MOST_KEY));
  }
}

}  // namespace cpr
