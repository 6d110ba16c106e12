// How a loss call is cut up on a CUDA device, and where everything is in the workspace. Arithmetic alone,
// so that it can be planned for a device that is not here.
#pragma once
#include <algorithm>

#include "../../mil_nce.h"
#include "../device/carver.h"
#include "../device/device_limits.h"
#include "../device/tuning.h"

namespace cpr {

constexpr int ATTEND_ROWS = 64;
constexpr int ATTEND_COLUMNS = 32;            // a step
constexpr int OUT_DEPTH = 128;                // features a block sums at most; more are cut over blocks
constexpr int64_t ATTEND_256_BYTES = 132096;  // shared memory of a block that holds 256 features (attend.h)
// Two for each of 132 multiprocessors; the shape alone decides, not the device.
constexpr int64_t BLOCKS_WANTED = 264;
// On 9.0 by wgmma (attend_wgmma.h): a block has two times 64 queries of up to ATTEND_WGMMA_DEPTHS features
// and takes ATTEND_WGMMA_KEYS keys a step; one for each of 132 multiprocessors, and where not even half of
// those come about, smaller steps fill the device better.
constexpr int ATTEND_WGMMA_KEYS = 128, ATTEND_WGMMA_DEPTHS = 128;
constexpr int64_t ATTEND_WGMMA_QUERIES = 128, ATTEND_WGMMA_BLOCKS = 132, ATTEND_WGMMA_BYTES = 202 * 1024;

// Rows of features in the workspace, as two planes.
struct LossPlanes {
  uint16_t* planes;
  int32_t* exponents;
};

constexpr int RANK_LISTS = 4;  // lanes that share a row of a tile, each with a list of its own

// Where statistics are gathered; null without them.
struct RankRoom {
  float* own;           // [B] scores of the own pairs
  uint32_t* above;      // [parts, B, RANK_LISTS] scores above it
  float* best_scores;   // [parts, B, RANK_LISTS, BEST]
  uint32_t* best_keys;  // likewise
};

inline RankRoom plan_ranks(int64_t queries, int64_t parts, Carver& carver) {
  RankRoom room;
  const int64_t lists = parts * queries * RANK_LISTS;
  room.own = carver.take<float>(queries);
  room.above = carver.take<uint32_t>(lists);
  room.best_scores = carver.take<float>(lists * BEST);
  room.best_keys = carver.take<uint32_t>(lists * BEST);
  return room;
}

// What a call wants of a sweep beside the loss.
struct LossWanted {
  bool sweep, gradient, stats;
};

struct LossLayout {
  int depths;  // features of a padded row
  bool wide;   // more than a block holds
  bool wgmma;  // a sweep by attend_wgmma.h, planes packed
  LossPlanes queries, keys;
  int64_t parts, part_columns;  // of the keys
  float *top, *mass, *attended;
  RankRoom ranks;
  int64_t bytes;  // of workspace

  int chunks() const { return (depths + OUT_DEPTH - 1) / OUT_DEPTH; }
};

inline LossPlanes plan_planes(int64_t count, int depths, Carver& carver) {
  LossPlanes made;
  made.planes = carver.take<uint16_t>(2 * count * depths);
  made.exponents = carver.take<int32_t>(count);
  return made;
}

// Null where a sweep runs by wgmma, else why not, in words.
inline const char* why_not_attend_wgmma(const LossArgs& args, const DeviceLimits& limits) {
  if (const char* reason = why_no_wgmma(limits)) return reason;
  if (limits.shared_bytes < ATTEND_WGMMA_BYTES) return "too little shared memory a block";
  if (args.dim > ATTEND_WGMMA_DEPTHS) return "more than 128 features";
  if (tuning().wgmma_parts > 0) return nullptr;
  if (args.num_queries <= 16) return "too few queries for a tile of 64";
  const int64_t tiles = (args.num_queries + ATTEND_WGMMA_QUERIES - 1) / ATTEND_WGMMA_QUERIES;
  const int64_t steps = (args.num_keys + ATTEND_WGMMA_KEYS - 1) / ATTEND_WGMMA_KEYS;
  return tiles * steps < ATTEND_WGMMA_BLOCKS / 2 ? "too few blocks for the device" : nullptr;
}

// The keys in parts that fill `blocks` blocks beside `tiles` of queries.
inline void plan_parts(int64_t num_keys, int64_t tiles, int64_t blocks, int64_t least, int64_t step,
                       LossLayout& layout) {
  const int64_t share = std::max<int64_t>(1, blocks / std::max<int64_t>(tiles, 1));
  layout.part_columns = rounded_up(std::max<int64_t>((num_keys + share - 1) / share, least), step);
  layout.parts = (num_keys + layout.part_columns - 1) / layout.part_columns;
}

// Null, or why the call cannot run. Parts of the keys: enough blocks to fill a large device, none of fewer
// keys than two steps.
inline const char* plan_loss(const LossArgs& args, LossWanted wanted, const DeviceLimits& limits,
                             void* workspace, LossLayout& layout) {
  layout = {};
  if (args.drawn()) return "negatives for each query";
  if (args.dim > INT32_MAX - OUT_DEPTH) return "features of more than 2^31 numbers";
  layout.wgmma = wanted.sweep && args.num_keys > 0 && !why_not_attend_wgmma(args, limits);
  layout.depths = args.dim <= 64 && !layout.wgmma
                      ? 64
                      : static_cast<int>(rounded_up(std::max<int64_t>(args.dim, 1), OUT_DEPTH));
  // two planes of 64 rows and twice 32 columns of 256 features are 131 KB: 8.0 and 9.0 have them, 8.6 has not
  layout.wide = layout.depths > 256 || (layout.depths == 256 && limits.shared_bytes < ATTEND_256_BYTES);
  Carver carver{static_cast<char*>(workspace)};
  const int64_t filled = layout.wgmma ? ATTEND_WGMMA_KEYS : 1;
  layout.queries = plan_planes(rounded_up(args.num_queries, filled), layout.depths, carver);
  layout.keys = plan_planes(rounded_up(args.num_keys, filled), layout.depths, carver);
  if (wanted.sweep) {
    if (layout.wgmma) {
      const int64_t tiles = (args.num_queries + ATTEND_WGMMA_QUERIES - 1) / ATTEND_WGMMA_QUERIES;
      const int64_t blocks = tuning().wgmma_parts > 0 ? tiles * tuning().wgmma_parts : ATTEND_WGMMA_BLOCKS;
      plan_parts(args.num_keys, tiles, blocks, ATTEND_WGMMA_KEYS, ATTEND_WGMMA_KEYS, layout);
    } else {
      const int64_t tiles = (args.num_queries + ATTEND_ROWS - 1) / ATTEND_ROWS * layout.chunks();
      plan_parts(args.num_keys, tiles, BLOCKS_WANTED, 2 * ATTEND_COLUMNS, ATTEND_COLUMNS, layout);
    }
    layout.top = carver.take<float>(layout.parts * args.num_queries);
    layout.mass = carver.take<float>(layout.parts * args.num_queries);
    if (wanted.gradient) layout.attended = carver.take<float>(layout.parts * args.num_queries * args.dim);
    if (wanted.stats) layout.ranks = plan_ranks(args.num_queries, layout.parts, carver);
  }
  layout.bytes = carver.used;
  return nullptr;
}

}  // namespace cpr
