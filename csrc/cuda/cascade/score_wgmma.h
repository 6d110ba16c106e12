// Scores of compute capability 9.0: a block holds 256 keys of one view in shared memory while all queries of
// a sweep stream through it, 64 at a time, by copies in bulk. Two warpgroups, 128 keys each, multiply by
// wgmma; a warp beside them copies. Products, their order, and what becomes of them are those of score.h. A
// block copies planes of its keys, or, where few blocks have the same ones, splits their float32 rows itself.
#pragma once
#include "../device/hopper.h"
#include "../score.h"
#include "layout.h"

namespace cpr {

constexpr int WGMMA_THREADS = 288, WGMMA_GROUPS = 2, GROUP_THREADS = 128;
constexpr int GROUP_KEYS = WGMMA_KEYS / WGMMA_GROUPS;
constexpr int LINE = PACKED * 2;              // bytes of a row in shared memory
constexpr int QUERY_BYTES = PACKED * LINE;    // of a stage and plane
constexpr int KEY_BYTES = WGMMA_KEYS * LINE;  // of 64 features and a plane
constexpr int QUERY_STAGES = 4;
constexpr int SWIZZLED_BEGIN = 1024;  // what swizzled rows begin at a multiple of

struct GroupShape {  // of a warp's share
  static constexpr int M16 = 1, N8 = GROUP_KEYS / 8;
};
struct GroupRows : TileRows<PACKED, GROUP_KEYS> {
  float key_scale[GROUP_KEYS];  // 2^key_exponent of usual ones
};

struct WgmmaBarriers {
  uint64_t full[QUERY_STAGES], empty[QUERY_STAGES];
  uint64_t keys[WGMMA_GROUPS][WGMMA_KEY_BLOCKS];
};

// Blocks of 64 features that a row has.
CPR_DEVICE int blocks_of(int dim) { return (dim + PACKED - 1) / PACKED; }

constexpr int64_t wgmma_shared_bytes(int planes, int blocks) {
  return SWIZZLED_BEGIN + int64_t{planes} * (blocks * KEY_BYTES + QUERY_STAGES * QUERY_BYTES) +
         WGMMA_GROUPS * static_cast<int64_t>(sizeof(GroupRows)) + static_cast<int64_t>(sizeof(WgmmaBarriers));
}
static_assert(wgmma_shared_bytes(1, WGMMA_KEY_BLOCKS) <= 227 * 1024 &&
                  wgmma_shared_bytes(2, WGMMA_KEY_BLOCKS / 2) <= 227 * 1024,
              "what the planner admits fits");

// A block's shared memory.
struct WgmmaShared {
  unsigned char *keys, *queries;  // [blocks][planes][256 lines], [stages][planes][64 lines]
  GroupRows* rows;                // [groups]
  WgmmaBarriers* barriers;

  CPR_DEVICE WgmmaShared(unsigned char* shared, int planes, int blocks) {
    keys = shared + (SWIZZLED_BEGIN - shared_address(shared) % SWIZZLED_BEGIN) % SWIZZLED_BEGIN;
    queries = keys + blocks * planes * KEY_BYTES;
    rows = reinterpret_cast<GroupRows*>(queries + QUERY_STAGES * planes * QUERY_BYTES);
    barriers = reinterpret_cast<WgmmaBarriers*>(rows + WGMMA_GROUPS);
  }
};

// The tiles of 64 queries that a block takes: every n-th.
struct QueryTiles {
  uint32_t first, step, end;
};

// One thread copies the queries, as far ahead as there are stages.
template <int PLANES>
CPR_DEVICE void copy_queries(const ScoreArgs& args, const ScoreView& view, const QueryTiles& tiles,
                             const WgmmaShared& shared) {
  constexpr uint32_t BYTES = PLANES * QUERY_BYTES;
  const int blocks = blocks_of(view.dim);
  const unsigned char* packed = reinterpret_cast<const unsigned char*>(view.queries.planes) +
                                args.first_query / PACKED * blocks * BYTES;
  uint32_t stage = 0, round = 0;
#pragma unroll 1
  for (uint32_t tile = tiles.first; tile < tiles.end; tile += tiles.step)
#pragma unroll 1
    for (int block = 0; block < blocks; ++block) {
      if (round > 0) barrier_wait(&shared.barriers->empty[stage], (round - 1) & 1);
      uint64_t* full = &shared.barriers->full[stage];
      barrier_arrive_expecting(full, BYTES);
      copy_bulk(shared.queries + stage * BYTES,
                packed + (static_cast<int64_t>(tile) * blocks + block) * BYTES, BYTES, full);
      if (++stage == QUERY_STAGES) stage = 0, ++round;
    }
}

// A warpgroup starts copying its keys, a group of copies for every 64 features; keys beyond the end repeat
// the last one.
template <int PLANES>
CPR_DEVICE void copy_keys(const ScoreArgs& args, const ScoreView& view, uint32_t key0, unsigned char* to) {
  const int thread = thread_index() % GROUP_THREADS, piece = thread & 7, row0 = thread >> 3;
  constexpr int EACH = GROUP_THREADS / 8;  // rows at a time, a multiple of 8: all swizzled alike
  to += row0 * LINE + ((piece ^ (row0 & 7)) << 4);
#pragma unroll 1
  for (int block = 0; block < blocks_of(view.dim); ++block) {
    const int d = block * PACKED + piece * 8;
#pragma unroll 1
    for (int p = 0; p < PLANES; ++p)
#pragma unroll 4
      for (int row = 0; row < GROUP_KEYS; row += EACH) {
        const uint32_t wanted = key0 + static_cast<uint32_t>(row0 + row);
        const int64_t at = wanted < args.num_keys ? wanted : args.num_keys - 1;
        const uint16_t* from = view.keys.planes + p * view.keys.plane + at * view.keys.pitch;
        copy_async(to + (block * PLANES + p) * KEY_BYTES + row * LINE, from + (d < view.dim ? d : 0),
                   d < view.dim);
      }
    copy_commit();
  }
}

// Rows of at most 128 features whose loads a warp has in flight together.
constexpr int SPLIT_AT_ONCE = 8;

// Features d to d + 3 of a row of float32, zeros beyond its end. WHOLE: on 16 bytes.
template <bool WHOLE>
CPR_DEVICE Features plain_features(const float* row, int d, int dim) {
  Features features{};
  if constexpr (WHOLE) {
    if (d < dim) features = *reinterpret_cast<const Features*>(row + d);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (d + i < dim) features.of[i] = row[d + i];
  }
  return features;
}

// Where a lane's four features of a key go, the low plane's behind the high one's.
CPR_DEVICE void store_key(const Features& features, unsigned char* high) {
  store_split(features, LOW_SCALE, reinterpret_cast<uint16_t*>(high),
              reinterpret_cast<uint16_t*>(high + KEY_BYTES));
}

// A warpgroup splits its keys as split_row does, a warp 32 of them, to where the tensor cores want them; keys
// beyond the end repeat the last one. `whole`: rows begin and end on 16 bytes. Returns the exponent of the
// key that has the thread's number.
CPR_DEVICE int split_keys(const ScoreArgs& args, const ScoreView& view, uint32_t key0, bool whole,
                          unsigned char* to) {
  const int lane = thread_index() & 31, warp_row = thread_index() % GROUP_THREADS / 32 * 32, d = 4 * lane;
  const bool has_place = d < blocks_of(view.dim) * PACKED;
  to += (d / PACKED * 2) * KEY_BYTES + warp_row * LINE + (d & 4) * 2;
  const uint32_t first = key0 + static_cast<uint32_t>(warp_row), last = args.num_keys - 1;
  const auto row_of = [&](int row) {
    const uint32_t key = first + static_cast<uint32_t>(row);
    const int64_t at = key < last ? key : last;
    return view.keys.plain + at * view.keys.plain_stride;
  };
  int own = 0;
#pragma unroll 1
  for (int row0 = 0; row0 < 32; row0 += SPLIT_AT_ONCE, to += SPLIT_AT_ONCE * LINE) {
    Features features[SPLIT_AT_ONCE];
    uint32_t tops[SPLIT_AT_ONCE], top = 0;
    if (whole) {
#pragma unroll
      for (int i = 0; i < SPLIT_AT_ONCE; ++i)
        features[i] = plain_features<true>(row_of(row0 + i), d, view.plain_dim);
    } else {
#pragma unroll
      for (int i = 0; i < SPLIT_AT_ONCE; ++i)
        features[i] = plain_features<false>(row_of(row0 + i), d, view.plain_dim);
    }
#pragma unroll
    for (int i = 0; i < SPLIT_AT_ONCE; ++i) {
      tops[i] = warp_max(largest(features[i], 0));
      top = tops[i] > top ? tops[i] : top;
      if (lane == row0 + i) own = tops[i] < 0x7F800000u ? exponent_of(tops[i]) : ODD;
    }
    const int piece = d % PACKED >> 3;
    if (top < SCALABLE) {
#pragma unroll
      for (int i = 0; i < SPLIT_AT_ONCE; ++i) {
        const float scale = power_of_two(-exponent_of(tops[i]));
#pragma unroll
        for (int f = 0; f < 4; ++f) features[i].of[f] *= scale;
        if (has_place) store_key(features[i], to + i * LINE + ((piece ^ i) << 4));
      }
    } else {
#pragma unroll 1
      for (int i = 0; i < SPLIT_AT_ONCE; ++i) {
        const Features one = plain_features<false>(row_of(row0 + i), d, view.plain_dim);
        const RowScale scale(warp_max(largest(one, 0)));
        if (has_place) store_key(scale.fitting(one), to + i * LINE + ((piece ^ i) << 4));
      }
    }
  }
  return own;
}

CPR_DEVICE bool plain_on_sixteen_bytes(const ScoreView& view) {
  const uint64_t places = reinterpret_cast<uintptr_t>(view.keys.plain) |
                          static_cast<uint64_t>(view.keys.plain_stride * 4) |
                          static_cast<uint64_t>(view.plain_dim * int64_t{4});
  return places % 16 == 0;
}

// The thread's first `blocks - left` groups of copies have landed.
CPR_DEVICE void keys_landed(int left) {
  static_assert(WGMMA_KEY_BLOCKS == 4, "as many branches as groups");
  if (left <= 0)
    copy_wait<0>();
  else if (left == 1)
    copy_wait<1>();
  else if (left == 2)
    copy_wait<2>();
  else
    copy_wait<3>();
}

// A warpgroup's keys, on their way to shared memory, and what there is beside their features.
template <int PLANES>
CPR_DEVICE void load_keys(const ScoreArgs& args, const ScoreView& view, uint32_t key0, unsigned char* to,
                          GroupRows& rows) {
  const int thread = thread_index() % GROUP_THREADS;
  const uint32_t key = key0 + static_cast<uint32_t>(thread);
  const bool real = key < args.num_keys;
  int exponent = 0;
  if (PLANES == 1 || view.keys.planes) {
    copy_keys<PLANES>(args, view, key0, to);
    if (PLANES == 2 && real) exponent = view.keys.exponents[key];
  } else {
    exponent = split_keys(args, view, key0, plain_on_sixteen_bytes(view), to);
    if (!real) exponent = 0;
  }
  rows.key_id[thread] = real && args.key_ids ? args.key_ids[key] : 0;
  rows.key_exponent[thread] = exponent;
  rows.key_scale[thread] = usual(exponent) ? power_of_two(exponent) : 1.0f;
}

// Are all keys of a thread's columns of usual size?
CPR_DEVICE bool usual_keys(const GroupRows& rows, int column0) {
  bool all = true;
#pragma unroll 4
  for (int n = 0; n < GroupShape::N8; ++n)
    all = all && usual(rows.key_exponent[column0 + n * 8]) && usual(rows.key_exponent[column0 + n * 8 + 1]);
  return all;
}

// A warp's own 16 rows of a tile's queries.
template <int PLANES>
CPR_DEVICE void load_query_rows(const ScoreArgs& args, const ScoreView& view, uint32_t query0, int m0,
                                GroupRows& rows) {
  sync_warp();  // the tile before has been written
  const int row = m0 + (thread_index() & 15);
  const uint32_t query = query0 + static_cast<uint32_t>(row);
  const bool real = query < args.num_queries;
  rows.query_id[row] = real && args.query_ids ? args.query_ids[query] : -1;
  rows.query_exponent[row] = PLANES == 2 && real ? view.queries.exponents[args.first_query + query] : 0;
  sync_warp();
}

// Products of 64 features of 64 queries and 128 keys.
template <bool BFLOAT, int PLANES>
CPR_DEVICE void multiply_block(float (&high)[16][4], float (&cross)[PLANES == 2 ? 16 : 1][4],
                               const unsigned char* queries, const unsigned char* keys, bool first) {
  const uint64_t a = swizzled_rows(shared_address(queries)), b = swizzled_rows(shared_address(keys));
  sync_warp();  // the instructions want whole warps
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < PACKED / 16; ++k) {
    const uint64_t at = k * NEXT_16_FEATURES;
    wgmma_multiply<BFLOAT>(high, a + at, b + at, !first || k > 0);
    if constexpr (PLANES == 2) {
      wgmma_multiply<BFLOAT>(cross, a + at, b + at + (KEY_BYTES >> 4), !first || k > 0);
      wgmma_multiply<BFLOAT>(cross, a + at + (QUERY_BYTES >> 4), b + at, true);
    }
  }
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_hold(high);
  if constexpr (PLANES == 2) wgmma_hold(cross);
}

// As write_scores, for keys that stay: a score takes one product with the sizes of its rows, which are powers
// of two.
template <int PLANES>
CPR_DEVICE void write_group_scores(const ScoreArgs& args, const ScoreView& view, const GroupRows& rows,
                                   uint32_t query0, uint32_t key0, int m0, bool keys_usual, float* to,
                                   float (&high)[16][4], float (&cross)[PLANES == 2 ? 16 : 1][4]) {
  const int lane = thread_index() & 31, row0 = m0 + lane / 4, column0 = lane % 4 * 2;
  bool plain = true;
  float of_row[2] = {1.0f, 1.0f};
  if constexpr (PLANES == 2) {
    const int exponents[2] = {rows.query_exponent[row0], rows.query_exponent[row0 + 8]};
    plain = keys_usual && usual(exponents[0]) && usual(exponents[1]);
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (plain) of_row[half] = power_of_two(exponents[half]);
  }
  const int64_t columns = static_cast<int64_t>(args.num_keys) - key0 - column0;  // from the first on
  float* at = to + row0 * args.pitch + column0;
#pragma unroll
  for (int half = 0; half < 2; ++half, at += 8 * args.pitch) {
    if (query0 + static_cast<uint32_t>(row0 + 8 * half) >= args.num_queries) break;
#pragma unroll
    for (int n = 0; n < GroupShape::N8; ++n) {
      Two pair = {{high[n][2 * half], high[n][2 * half + 1]}};
      if constexpr (PLANES == 2) {
        const Two keys = *reinterpret_cast<const Two*>(rows.key_scale + column0 + n * 8);
#pragma unroll
        for (int i = 0; i < 2; ++i)
          pair.of[i] = (pair.of[i] + cross[n][2 * half + i] * (1.0f / LOW_SCALE)) *
                       (plain ? of_row[half] * keys.of[i] : 1.0f);
      }
      if (8 * n < columns) *reinterpret_cast<Two*>(at + 8 * n) = pair;
    }
  }
  if (!plain || args.exclude || (args.key_ids && any_never<GroupShape>(rows, row0, column0)))
    mend_scores<GroupShape, PLANES>(args, view, rows, query0, key0, row0, column0, to, plain);
}

// One warpgroup: all tiles against its keys.
template <bool BFLOAT, int PLANES>
CPR_DEVICE void score_keys(const ScoreArgs& args, int view_index, uint32_t key0, const QueryTiles& tiles,
                           const WgmmaShared& shared) {
  const ScoreView& view = args.views[view_index];
  const int group = thread_index() / GROUP_THREADS, m0 = thread_index() / 32 % 4 * 16;
  const int blocks = blocks_of(view.dim);
  GroupRows& rows = shared.rows[group];
  WgmmaBarriers& barriers = *shared.barriers;
  unsigned char* keys = shared.keys + group * GROUP_KEYS * LINE;
  key0 += static_cast<uint32_t>(group * GROUP_KEYS);
  load_keys<PLANES>(args, view, key0, keys, rows);

  bool keys_usual = true;
  uint32_t stage = 0, round = 0;
#pragma unroll 1
  for (uint32_t tile = tiles.first; tile < tiles.end; tile += tiles.step) {
    const uint32_t query0 = tile * PACKED;
    load_query_rows<PLANES>(args, view, query0, m0, rows);
    float high[1][16][4] = {}, cross[1][PLANES == 2 ? 16 : 1][4] = {};
#pragma unroll 1
    for (int block = 0; block < blocks; ++block) {
      if (tile == tiles.first) {  // the warpgroup's keys, each thread's share shown by itself
        keys_landed(blocks - 1 - block);
        show_to_tensor_cores();
        barrier_arrive(&barriers.keys[group][block]);
        barrier_wait(&barriers.keys[group][block], 0);
      }
      barrier_wait(&barriers.full[stage], round & 1);
      multiply_block<BFLOAT, PLANES>(high[0], cross[0], shared.queries + stage * PLANES * QUERY_BYTES,
                                     keys + block * PLANES * KEY_BYTES, block == 0);
      sync_warp();  // all of the warp have read the stage
      if (thread_index() % 32 == 0) barrier_arrive(&barriers.empty[stage]);
      if (++stage == QUERY_STAGES) stage = 0, ++round;
    }
    float* to = args.out + view_index * args.view_stride + query0 * args.pitch + key0;
    if (PLANES == 2 && tile == tiles.first) keys_usual = usual_keys(rows, thread_index() % 4 * 2);
    write_group_scores<PLANES>(args, view, rows, query0, key0, m0, keys_usual, to, high[0], cross[0]);
  }
}

template <bool BFLOAT, int PLANES>
CPR_DEVICE void score_by_wgmma(const ScoreArgs& args, uint32_t parts, unsigned char* memory) {
  const int view = static_cast<int>(block_index_y());
  const QueryTiles tiles{block_index_z(), parts, (args.num_queries + PACKED - 1) / PACKED};
  const WgmmaShared shared(memory, PLANES, blocks_of(args.views[view].dim));
  if (thread_index() == 0) {
    for (int i = 0; i < QUERY_STAGES; ++i) {
      barrier_init(&shared.barriers->full[i], 1);
      barrier_init(&shared.barriers->empty[i], WGMMA_GROUPS * GROUP_THREADS / 32);
    }
    for (int i = 0; i < WGMMA_GROUPS * WGMMA_KEY_BLOCKS; ++i)
      barrier_init(&shared.barriers->keys[0][0] + i, GROUP_THREADS);
    barriers_are_made();
  }
  sync_block();
  if (thread_index() < WGMMA_GROUPS * GROUP_THREADS)
    score_keys<BFLOAT, PLANES>(args, view, block_index() * WGMMA_KEYS, tiles, shared);
  else if (thread_index() == WGMMA_GROUPS * GROUP_THREADS)
    copy_queries<PLANES>(args, args.views[view], tiles, shared);
}

}  // namespace cpr
