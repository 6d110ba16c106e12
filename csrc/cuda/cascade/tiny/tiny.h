// A tiny call by one cluster: each block holds all queries and multiplies them by its share of the keys, whose
// rows go from memory to a warp's registers and nowhere else. A score is written to the shared memory of the
// block that selects for its query. Products and their order are those of score.h, but for the order of the
// 16 features that one instruction sums.
#pragma once
#include "../stages.h"
#include "rows.h"

namespace cpr {

static_assert(TINY_RESULT <= RANKED, "results are ranked, not sorted");
static_assert(TINY_THREADS == CODED_THREADS<FEW_PAIRS>, "the threads that select");

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
  TinyQueries* queries;    // from here on, before the selection
  unsigned char* stages;   // [TINY_STAGES] of the warp's keys
  unsigned char* landing;  // [4][TINY_THREADS] pieces of queries
  unsigned char* rows;     // [views][TINY_QUERIES] of TINY_ROW bytes: four features of both planes, or 16 bits

  CPR_DEVICE TinyShared(const TinyArgs& args, unsigned char* shared)
      : scores(reinterpret_cast<float*>(shared)),
        selection(shared + args.selection_at),
        queries(reinterpret_cast<TinyQueries*>(selection)),
        stages(selection + sizeof(TinyQueries) + (thread_index() >> 5) * (TINY_STAGES * TINY_STAGE<PLANES>)),
        landing(selection + sizeof(TinyQueries) + TINY_WARPS * TINY_STAGES * TINY_STAGE<PLANES>),
        rows(landing + TINY_LANDING<PLANES>) {}
};

// What a warp multiplies next: 16 keys of a view. Pieces of 16 keys go to blocks in turn, then to warps.
struct TinyStep {
  uint32_t key0;
  int view;
  CPR_DEVICE TinyStep()
      : key0((block_index() + static_cast<uint32_t>(thread_index() >> 5) * TINY_BLOCKS) * WARP_KEYS), view(0) {}
  CPR_DEVICE void next(const TinyArgs& args) {
    if (++view < args.num_views) return;
    view = 0;
    key0 += TINY_BLOCKS * TINY_WARPS * WARP_KEYS;
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

// Four rows of float32 queries a warp, eight lanes each: rows of all views, behind each other.
struct QueryRow {
  int view, query, lane;
  CPR_DEVICE explicit QueryRow(int first)
      : view(static_cast<int>(static_cast<uint32_t>(first + (thread_index() >> 3)) / TINY_QUERIES)),
        query(thread_index() >> 3 & (TINY_QUERIES - 1)),
        lane(thread_index() & 7) {}
};
constexpr int QUERY_ROWS = TINY_THREADS / 8;  // at a time
static_assert(QUERY_ROWS % TINY_QUERIES == 0, "whole views");

CPR_DEVICE void copy_split_queries(const TinyArgs& args, int first, unsigned char* landing) {
  const QueryRow row(first);
  if (row.view < args.num_views)
    copy_rows<float, 1, 0, 4, TINY_THREADS * 16, 128>(args.views[row.view].queries,
                                                      static_cast<uint32_t>(row.query), args.num_queries - 1,
                                                      row.lane * 4, args.views[row.view].dim,
                                                      landing + thread_index() * 16);
}

CPR_DEVICE void split_queries(const TinyArgs& args, int first, const TinyShared<2>& shared) {
  const QueryRow row(first);
  if (row.view >= args.num_views) return;
  const SplitPieces<4, 8, TINY_THREADS * 16> of(shared.landing + thread_index() * 16);
  unsigned char* to = shared.rows + (row.view * TINY_QUERIES + row.query) * TINY_ROW<2> + row.lane * 16;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    struct alignas(16) Both {
      uint32_t high[2], low[2];
    } both;
#pragma unroll
    for (int p = 0; p < 2; ++p) of.split(2 * i + p, both.high[p], both.low[p]);
    *reinterpret_cast<Both*>(to + i * 128) = both;
  }
  if (row.lane == 0) {
    shared.queries->exponent[row.view][row.query] = of.exponent;
    shared.queries->scale[row.view][row.query] =
        usual(of.exponent) ? power_of_two(of.exponent) : float_of(ABSENT);
  }
}

// A piece of each view's rows of 16-bit queries a thread.
CPR_DEVICE void copy_queries(const TinyArgs& args, unsigned char* rows) {
  const int query = thread_index() >> 4, piece = thread_index() & 15;
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
struct TinyScores {
  uint32_t key;
  int query;
  int64_t key_id[2];
  FloatsOfBlock to[2][2];  // the scores of each query

  CPR_DEVICE explicit TinyScores(float* scores)
      : query((thread_index() & 3) * 2), to{{place(scores, 0), place(scores, 1)}, {place(scores, 8), place(scores, 9)}} {}
  CPR_DEVICE FloatsOfBlock place(const float* scores, int i) const {
    return {scores, static_cast<uint32_t>(query + i)};
  }
  CPR_DEVICE void aim(const TinyArgs& args, uint32_t key0) {
    key = key0 + static_cast<uint32_t>((thread_index() & 31) / 4);
#pragma unroll
    for (int half = 0; half < 2; ++half)
      key_id[half] = args.key_ids && key + 8 * half < args.num_keys ? args.key_ids[key + 8 * half] : 0;
  }
  // Do ids exclude any pair?
  CPR_DEVICE bool any_never(const TinyQueries& queries) const {
    bool any = key_id[0] < 0 || key_id[1] < 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t id = queries.id[query + j / 2 * 8 + j % 2];
      any = any || id == key_id[0] || id == key_id[1];
    }
    return any;
  }
};

// What scores become where a pair may never be selected, or where rows are of unusual size (score.h): `sums`
// unscaled. A loop that turns the numbers around, for few need it.
CPR_DEVICE void mend(const TinyArgs& args, const TinyView& view, const TinyScores& of, const int32_t* exponents,
                     const int (&of_keys)[2], bool unusual, const TinySums& sums, const TinyQueries& queries,
                     TinySums& scores) {
  float sum[8], score[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) sum[i] = sums[i / 4][i % 4], score[i] = scores[i / 4][i % 4];
#pragma unroll 1
  for (int i = 0; i < 8; ++i) {
    const int query = of.query + i / 4 * 8 + i % 2;
    const bool second = i & 2;
    const uint32_t key = of.key + (second ? 8 : 0);
    const int64_t id = second ? of.key_id[1] : of.key_id[0];
    float made = score[0];
    if (static_cast<uint32_t>(query) < args.num_queries && key < args.num_keys) {
      bool never = args.key_ids && (id < 0 || queries.id[query] == id);
      if (args.exclude) never = never || args.exclude[query * args.exclude_stride + key] != 0;
      if (never) {
        made = float_of(ABSENT);
      } else if (unusual) {
        const int of_query = exponents[query], of_key = second ? of_keys[1] : of_keys[0];
        made = of_query == ODD || of_key == ODD
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
CPR_DEVICE void write_tiny(const TinyArgs& args, int view, const TinyScores& of, const TinyQueries& queries,
                           const int (&exponents)[2], TinySums& high, const TinySums& cross) {
  TinySums scores;
  bool unusual = false;
  if constexpr (PLANES == 2) {
    float of_key[2], of_query[4], check = 0.0f;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      of_key[i] = usual(exponents[i]) ? power_of_two(exponents[i]) : float_of(ABSENT), check += of_key[i];
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      const Two two = *reinterpret_cast<const Two*>(&queries.scale[view][of.query + 4 * i]);
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
  if (unusual || args.exclude || (args.key_ids && of.any_never(queries)))
    mend(args, args.views[view], of, queries.exponent[view], exponents, unusual, high, queries, scores);
  const uint32_t at = static_cast<uint32_t>(view) * static_cast<uint32_t>(args.select.plane_stride) + of.key;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    FloatsOfBlock to = of.to[i / 2][i % 2];
    to.move(at);
    to.store<0>(scores[i / 2][i % 2]);
    to.store<8>(scores[i / 2][i % 2 + 2]);
  }
}

// All scores of the block's keys.
template <bool BFLOAT, int PLANES>
CPR_DEVICE void score_tiny(const TinyArgs& args, const TinyShared<PLANES>& shared) {
  if constexpr (PLANES == 2)
    copy_split_queries(args, 0, shared.landing);
  else
    copy_queries(args, shared.rows);
  copy_commit();
  TinyStep ahead;
#pragma unroll 1
  for (int i = 0; i < TINY_STAGES; ++i) {
    if (ahead.key0 < args.num_keys) copy_keys<PLANES>(args, ahead, shared.stages + i * TINY_STAGE<PLANES>);
    copy_commit();
    ahead.next(args);
  }
  if (thread_index() < TINY_QUERIES)
    shared.queries->id[thread_index()] =
        args.query_ids && static_cast<uint32_t>(thread_index()) < args.num_queries
            ? args.query_ids[thread_index()]
            : -1;
  copy_wait<TINY_STAGES>();
  if constexpr (PLANES == 2) {
    split_queries(args, 0, shared);
#pragma unroll 1
    for (int first = QUERY_ROWS; first < args.num_views * TINY_QUERIES; first += QUERY_ROWS) {
      copy_split_queries(args, first, shared.landing);
      copy_commit();
      copy_wait<0>();
      split_queries(args, first, shared);
    }
  }
  sync_block();
  wait_for_cluster();  // scores may be written to all blocks

  TinyScores scores(shared.scores);
  uint32_t stage = 0;
#pragma unroll 1
  for (TinyStep step; step.key0 < args.num_keys; step.next(args)) {
    unsigned char* keys = shared.stages + stage * TINY_STAGE<PLANES>;
    const unsigned char* rows = shared.rows + step.view * (TINY_QUERIES * TINY_ROW<PLANES>);
    TinySums high = {}, cross = {};
    int exponents[2] = {0, 0};
    scores.aim(args, step.key0);
    copy_wait<TINY_STAGES - 1>();
    sync_warp();
    if constexpr (PLANES == 2) {
      uint32_t a[2][8][4];
      split_keys(keys, a, exponents);
      multiply_split(a, rows, high, cross);
    } else {
      multiply_plain<BFLOAT>(keys, rows, high);
    }
    sync_warp();  // all lanes have read the keys
    if (ahead.key0 < args.num_keys) copy_keys<PLANES>(args, ahead, keys);
    copy_commit();
    ahead.next(args);
    stage ^= 1;
    write_tiny<PLANES>(args, step.view, scores, *shared.queries, exponents, high, cross);
  }
  copy_wait<0>();
}

template <bool BFLOAT, int PLANES>
CPR_DEVICE void cascade_tiny(const TinyArgs& args, unsigned char* memory) {
  arrive_at_cluster();
  const TinyShared<PLANES> shared(args, memory);
  score_tiny<BFLOAT, PLANES>(args, shared);
  arrive_at_cluster();
  wait_for_cluster();  // all scores are there
  if (block_index() < args.num_queries)
    select_query<FEW_PAIRS, true, false>(args.select, block_index(), shared.selection);
}

}  // namespace cpr
