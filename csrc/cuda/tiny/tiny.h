// A tiny call by one cluster: each block holds all queries and multiplies them by its share of the keys,
// whose rows go from memory to a warp's registers and nowhere else. A score is written to the shared memory
// of the block that selects for its query. Products and their order are those of score.h, but for the order
// of the 16 features that one instruction sums.
#pragma once
#include "../select/stages.h"
#include "rows.h"

namespace cpr {

static_assert(TINY_RESULT <= RANKED, "results are ranked, not sorted");
static_assert(TINY_THREADS >= CODED_THREADS<FEW_PAIRS>, "half of the threads select");

struct TinyView {
  TinyRows queries, keys;
  int dim;
};

struct TinyArgs {
  TinyView views[MAX_VIEWS];
  int num_views;
  uint32_t num_queries, num_keys;
  const int64_t *query_ids, *key_ids;
  const uint8_t* exclude;
  int64_t exclude_stride;
  uint32_t selection_at;  // bytes, where scores end
  SelectSharedArgs select;
};
static_assert(sizeof(TinyArgs) <= 4096, "passed by value");

// A block's shared memory.
template <int PLANES>
struct TinyShared {
  float* scores;  // [planes][plane_stride] of the block's query
  unsigned char* selection;
  TinyFacts* facts;        // from here on, before the selection
  unsigned char* keys;     // of the warp, TINY_STAGE bytes
  unsigned char* landing;  // [2][TINY_THREADS] pieces of queries
  unsigned char* rows;  // [views][TINY_QUERIES] of TINY_ROW bytes: four features of both planes, or 16 bits

  CPR_DEVICE TinyShared(const TinyArgs& args, unsigned char* shared)
      : scores(reinterpret_cast<float*>(shared)),
        selection(shared + args.selection_at),
        facts(reinterpret_cast<TinyFacts*>(selection)),
        keys(selection + sizeof(TinyFacts) + (thread_index() >> 5) * TINY_STAGE<PLANES>),
        landing(selection + sizeof(TinyFacts) + TINY_WARPS * TINY_STAGE<PLANES>),
        rows(landing + TINY_LANDING<PLANES>) {}
};

// What a warp multiplies: 16 keys of a view. Pieces of 16 keys go to blocks in turn, a block's with their
// views to warps.
struct TinyStep {
  uint32_t key0, view;
  CPR_DEVICE TinyStep(const TinyArgs& args, uint32_t number) {
    const uint32_t views = static_cast<uint32_t>(args.num_views);
    view = number % views;
    key0 = (block_index() + number / views * TINY_BLOCKS) * WARP_KEYS;
  }
};

// A lane of a group of four has, of two rows eight apart, every fourth piece.
template <int PLANES>
CPR_DEVICE void copy_keys(const TinyArgs& args, const TinyStep& step, unsigned char* stage) {
  using T = typename TinyFeature<PLANES>::Type;
  constexpr int PIECE = 16 / sizeof(T), COUNT = TINY_DIM / (4 * PIECE), TO = PLANES == 2 ? 32 * 16 : 64,
                ROW = PLANES == 2 ? COUNT * TO : 8 * TINY_ROW<1>;
  const int lane = thread_index() & 31;
  stage += PLANES == 2 ? lane * 16 : lane / 4 * TINY_ROW<1> + lane % 4 * 16;
  copy_rows<T, 2, ROW, COUNT, TO, 64>(args.views[step.view].keys, step.key0 + static_cast<uint32_t>(lane / 4),
                                      args.num_keys - 1, lane % 4 * PIECE, args.views[step.view].dim, stage);
}

// Two rows of float32 queries a warp, 16 lanes each: rows of all views, behind each other.
constexpr int ROW_LANES = 16, LANE_PIECES = TINY_DIM / 4 / ROW_LANES, QUERY_ROWS = TINY_THREADS / ROW_LANES;
struct QueryRow {
  int view, query, lane;
  CPR_DEVICE explicit QueryRow(int first)
      : view(static_cast<int>(static_cast<uint32_t>(first + thread_index() / ROW_LANES) / TINY_QUERIES)),
        query(thread_index() / ROW_LANES & (TINY_QUERIES - 1)),
        lane(thread_index() & (ROW_LANES - 1)) {}
};
static_assert(QUERY_ROWS % TINY_QUERIES == 0, "whole views");

CPR_DEVICE void copy_split_queries(const TinyArgs& args, int first, unsigned char* landing) {
  const QueryRow row(first);
  if (row.view < args.num_views)
    copy_rows<float, 1, 0, LANE_PIECES, TINY_THREADS * 16, ROW_LANES * 16>(
        args.views[row.view].queries, static_cast<uint32_t>(row.query), args.num_queries - 1, row.lane * 4,
        args.views[row.view].dim, landing + thread_index() * 16);
}

CPR_DEVICE void split_queries(const TinyArgs& args, int first, const TinyShared<2>& shared) {
  const QueryRow row(first);
  if (row.view >= args.num_views) return;
  const SplitPieces<LANE_PIECES, ROW_LANES, TINY_THREADS * 16> of(shared.landing + thread_index() * 16);
  unsigned char* to = shared.rows + (row.view * TINY_QUERIES + row.query) * TINY_ROW<2> + row.lane * 16;
#pragma unroll
  for (int i = 0; i < LANE_PIECES; ++i) {
    struct alignas(16) Both {
      uint32_t high[2], low[2];
    } both;
#pragma unroll
    for (int p = 0; p < 2; ++p) of.split(2 * i + p, both.high[p], both.low[p]);
    *reinterpret_cast<Both*>(to + i * ROW_LANES * 16) = both;
  }
  if (row.lane == 0) {
    shared.facts->exponent[row.view][row.query] = of.exponent;
    shared.facts->scale[row.view][row.query] =
        usual(of.exponent) ? power_of_two(of.exponent) : float_of(ABSENT);
  }
}

// A piece of each view's rows of 16-bit queries a thread.
CPR_DEVICE void copy_queries(const TinyArgs& args, unsigned char* rows) {
  const int query = thread_index() >> 4, piece = thread_index() & 15;
  if (query >= TINY_QUERIES) return;
  rows += query * TINY_ROW<1> + piece * 16;
#pragma unroll 1
  for (int v = 0; v < args.num_views; ++v, rows += TINY_QUERIES * TINY_ROW<1>)
    copy_rows<uint16_t, 1, 0, 1, 0, 0>(args.views[v].queries, static_cast<uint32_t>(query),
                                       args.num_queries - 1, piece * 8, args.views[v].dim, rows);
}

// A warp's keys as the rows of products, both planes, in registers: a float32 row's four features of a lane
// are of 16 that one instruction sums, wherever it takes them to be.
CPR_DEVICE void split_keys(unsigned char* stage, uint32_t (&a)[2][8][4], int (&exponents)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const SplitPieces<8, 4, 32 * 16> of(stage + half * 8 * 32 * 16 + (thread_index() & 31) * 16);
    exponents[half] = of.exponent;
#pragma unroll
    for (int s = 0; s < 8; ++s)
#pragma unroll
      for (int p = 0; p < 2; ++p) of.split(2 * s + p, a[0][s][2 * p + half], a[1][s][2 * p + half]);
  }
}

using TinySums = float[2][4];  // 16 keys by 16 queries, eight at a time

// As score_tile multiplies, with keys and queries exchanged.
CPR_DEVICE void multiply_split(const uint32_t (&a)[2][8][4], const unsigned char* rows, TinySums& high,
                               TinySums& cross) {
  struct alignas(16) Both {
    uint32_t high[2], low[2];
  };
  const int lane = thread_index() & 31;
  rows += lane / 4 * TINY_ROW<2> + lane % 4 * 16;
#pragma unroll
  for (int s = 0; s < 8; ++s)
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const Both b = *reinterpret_cast<const Both*>(rows + n * 8 * TINY_ROW<2> + s * 64);
      multiply_add<false>(high[n], a[0][s], b.high[0], b.high[1]);
      multiply_add<false>(cross[n], a[1][s], b.high[0], b.high[1]);
      multiply_add<false>(cross[n], a[0][s], b.low[0], b.low[1]);
    }
}

template <bool BFLOAT>
CPR_DEVICE void multiply_plain(const unsigned char* stage, const unsigned char* rows, TinySums& sums) {
  const int lane = thread_index() & 31;
  stage += (lane & 15) * TINY_ROW<1> + (lane >> 4) * 16;
  rows += ((lane & 7) + (lane >> 4) * 8) * TINY_ROW<1> + (lane >> 3 & 1) * 16;
#pragma unroll
  for (int s = 0; s < 8; ++s) {
    uint32_t a[4], b[4];
    load_matrices<false>(a, stage + s * 32);
    load_matrices<false>(b, rows + s * 32);
#pragma unroll
    for (int n = 0; n < 2; ++n) multiply_add<BFLOAT>(sums[n], a, b[2 * n], b[2 * n + 1]);
  }
}

// What a lane scores of a step: two keys by four queries, sums[n][2 half + i] of key lane / 4 + 8 half and
// query 8 n + lane % 4 * 2 + i.
struct TinyPairs {
  uint32_t key;
  int query;
  CPR_DEVICE explicit TinyPairs(uint32_t key0)
      : key(key0 + static_cast<uint32_t>((thread_index() & 31) / 4)), query((thread_index() & 3) * 2) {}
};

CPR_DEVICE int64_t id_of_key(const TinyFacts& facts, int half) {
  return facts.key_id[thread_index() >> 5][(thread_index() & 31) / 4 + 8 * half];
}

// Do ids exclude any pair of a lane?
CPR_DEVICE bool any_never(const TinyFacts& facts) {
  const int64_t first = id_of_key(facts, 0), second = id_of_key(facts, 1);
  bool any = first < 0 || second < 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int64_t id = facts.query_id[(thread_index() & 3) * 2 + j / 2 * 8 + j % 2];
    any = any || id == first || id == second;
  }
  return any;
}

// What scores become where a pair may never be selected, or where rows are of unusual size (score.h): `sums`
// unscaled. A loop that turns the numbers around, for few need it.
CPR_DEVICE void mend(const TinyArgs& args, uint32_t view_index, const TinyPairs& of, const int (&of_keys)[2],
                     bool unusual, const TinySums& sums, const TinyFacts& facts, TinySums& scores) {
  const TinyView& view = args.views[view_index];
  float sum[8], score[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) sum[i] = sums[i / 4][i % 4], score[i] = scores[i / 4][i % 4];
#pragma unroll 1
  for (int i = 0; i < 8; ++i) {
    const int query = of.query + i / 4 * 8 + i % 2;
    const bool second = i & 2;
    const uint32_t key = of.key + (second ? 8 : 0);
    const int64_t id = args.key_ids ? id_of_key(facts, second) : 0;
    float made = score[0];
    if (static_cast<uint32_t>(query) < args.num_queries && key < args.num_keys) {
      bool never = id < 0 || facts.query_id[query] == id;
      if (args.exclude) never = never || args.exclude[query * args.exclude_stride + key] != 0;
      if (never) {
        made = float_of(ABSENT);
      } else if (unusual) {
        const int of_query = facts.exponent[view_index][query], of_key = second ? of_keys[1] : of_keys[0];
        made =
            of_query == ODD || of_key == ODD
                ? plain_product(static_cast<const float*>(view.queries.rows) + query * view.queries.stride,
                                static_cast<const float*>(view.keys.rows) + key * view.keys.stride, view.dim)
                : scaled(sum[0], of_query + of_key);
      }
    }
#pragma unroll
    for (int j = 0; j < 7; ++j) sum[j] = sum[j + 1], score[j] = score[j + 1];
    score[7] = made;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) scores[i / 4][i % 4] = score[i];
}

// A step's sums to the blocks of their queries. Exponents of keys are those of split rows.
template <int PLANES>
CPR_DEVICE void write_tiny(const TinyArgs& args, uint32_t view, const TinyPairs& of,
                           const TinyShared<PLANES>& shared, const int (&exponents)[2], TinySums& high,
                           const TinySums& cross) {
  const TinyFacts& facts = *shared.facts;
  TinySums scores;
  bool unusual = false;
  if constexpr (PLANES == 2) {
    float of_key[2], of_query[4], check = 0.0f;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      of_key[i] = usual(exponents[i]) ? power_of_two(exponents[i]) : float_of(ABSENT), check += of_key[i];
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      const Two two = *reinterpret_cast<const Two*>(&facts.scale[view][of.query + 4 * i]);
      of_query[i] = two.of[0], of_query[i + 1] = two.of[1], check += two.of[0] + two.of[1];
    }
    unusual = check != check;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float& sum = high[i / 4][i % 4];
      sum += cross[i / 4][i % 4] * (1.0f / LOW_SCALE);
      scores[i / 4][i % 4] = sum * (of_query[i / 4 * 2 + i % 2] * of_key[i / 2 % 2]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) scores[i / 4][i % 4] = high[i / 4][i % 4];
  }
  if (unusual || args.exclude || (args.key_ids && any_never(facts)))
    mend(args, view, of, exponents, unusual, high, facts, scores);
  const float* const at = shared.scores + view * args.select.plane_stride + of.key;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const FloatsOfBlock to(at, static_cast<uint32_t>(of.query + i / 2 * 8 + i % 2));
    to.store<0>(scores[i / 2][i % 2]);
    to.store<8>(scores[i / 2][i % 2 + 2]);
  }
}

CPR_DEVICE void load_key_ids(const TinyArgs& args, uint32_t key0, TinyFacts& facts) {
  const int lane = thread_index() & 31;
  const uint32_t key = key0 + static_cast<uint32_t>(lane);
  if (lane < WARP_KEYS) facts.key_id[thread_index() >> 5][lane] = key < args.num_keys ? args.key_ids[key] : 0;
}

// The queries of all views as the tensor cores want them. The first ones are under way, and behind them a
// group of copies that need not have landed.
template <int PLANES>
CPR_DEVICE void take_queries(const TinyArgs& args, const TinyShared<PLANES>& shared) {
  if (thread_index() < TINY_QUERIES)
    shared.facts->query_id[thread_index()] =
        args.query_ids && static_cast<uint32_t>(thread_index()) < args.num_queries
            ? args.query_ids[thread_index()]
            : -1;
  copy_wait<1>();
  if constexpr (PLANES == 2) {
#pragma unroll 1
    for (int first = 0;;) {
      split_queries(args, first, shared);
      first += QUERY_ROWS;
      if (first >= args.num_views * TINY_QUERIES) break;
      copy_split_queries(args, first, shared.landing);
      copy_commit();
      copy_wait<0>();
    }
  }
  sync_block();
}

// A step's products, its keys in shared memory, and what becomes of them.
template <bool BFLOAT, int PLANES>
CPR_DEVICE void score_step(const TinyArgs& args, const TinyStep& step, const TinyShared<PLANES>& shared) {
  copy_wait<0>();
  sync_warp();
  const unsigned char* rows = shared.rows + step.view * (TINY_QUERIES * TINY_ROW<PLANES>);
  TinySums high = {}, cross = {};
  int exponents[2] = {0, 0};
  if constexpr (PLANES == 2) {
    uint32_t a[2][8][4];
    split_keys(shared.keys, a, exponents);
    sync_warp();  // no queries are loaded before: registers are few
    multiply_split(a, rows, high, cross);
  } else {
    multiply_plain<BFLOAT>(shared.keys, rows, high);
  }
  write_tiny<PLANES>(args, step.view, TinyPairs(step.key0), shared, exponents, high, cross);
}

// All scores of the block's keys. The first keys of a warp are copied while queries are split; of more, a
// warp waits while others work.
template <bool BFLOAT, int PLANES>
CPR_DEVICE void score_tiny(const TinyArgs& args, const TinyShared<PLANES>& shared) {
  if constexpr (PLANES == 2)
    copy_split_queries(args, 0, shared.landing);
  else
    copy_queries(args, shared.rows);
  copy_commit();
#pragma unroll 1
  for (uint32_t number = static_cast<uint32_t>(thread_index() >> 5);; number += TINY_WARPS) {
    const TinyStep step(args, number);
    const bool any = step.key0 < args.num_keys;
    if (any) copy_keys<PLANES>(args, step, shared.keys);
    copy_commit();
    if (any && args.key_ids) load_key_ids(args, step.key0, *shared.facts);
    if (number < TINY_WARPS) {
      take_queries<PLANES>(args, shared);
      wait_for_cluster();  // scores may be written to all blocks
    }
    if (!any) break;
    score_step<BFLOAT, PLANES>(args, step, shared);
    sync_warp();  // all lanes have read the keys
  }
}

template <bool BFLOAT, int PLANES>
CPR_DEVICE void cascade_tiny(const TinyArgs& args, unsigned char* memory) {
  arrive_at_cluster();
  const TinyShared<PLANES> shared(args, memory);
  score_tiny<BFLOAT, PLANES>(args, shared);
  arrive_at_cluster();
  wait_for_cluster();  // all scores are there
  if (block_index() < args.num_queries && thread_index() < CODED_THREADS<FEW_PAIRS>)
    select_query<Selection::codes_if_there, FEW_PAIRS>(args.select, block_index(), CODED_THREADS<FEW_PAIRS>,
                                                       shared.selection);
}

}  // namespace cpr
