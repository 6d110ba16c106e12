// Exact scores of one query with keys that lie anywhere: rows are gathered a block at a time and turned, so
// that keys are lanes, and multiplied in score.h's own order of sums. A score has the same bits either way.
#pragma once
#include "../../cascade_topk.h"
#include "../arena.h"
#include "float32.h"

namespace cpr {
namespace CPR_ISA_NAMESPACE {

inline void prefetch_row(const View& view, DType dtype, int64_t key) {
  const char* row = row_at(view.keys, dtype, view.key_stride, key);
  const int64_t bytes = view.dim * (dtype == DType::float32 ? 4 : 2);
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at, 0, 3);
}

// Query q's row of each view, widened, one after another.
inline void widen_query(const CascadeArgs& args, int64_t q, float* rows) {
  for (int v = 0; v < args.num_views; rows += args.views[v++].dim)
    widen_row(row_at(args.views[v].queries, args.dtype, args.views[v].query_stride, q), args.dtype,
              args.views[v].dim, rows);
}

struct Gathered {
  static constexpr int BLOCK = 64;      // keys scored at a time
  static constexpr int CHAINS = 4;      // vectors of keys whose sums run side by side
  static constexpr int64_t AHEAD = 16;  // rows prefetched before they are read: they may be anywhere
  float* wide;                          // [BLOCK, pitch] gathered rows
  float* columns;                       // [pitch, BLOCK] the same, turned

  // Whole vectors, and not a power of two: rows that far apart share cache sets.
  static int64_t pitch_of(int64_t dim) { return round_up(dim, 16) + 16; }
  static Gathered take(Arena& arena, int64_t widest) {
    float* wide = arena.take<float>(BLOCK * pitch_of(widest));
    return {wide, arena.take<float>(BLOCK * pitch_of(widest))};
  }

  // The keys' rows as `columns`; lanes beyond `count` hold any.
  void turn(const View& view, const int32_t* which, int64_t count, int64_t listed) const {
    const float* rows[W];
    for (int64_t i = 0; i < count; i += W) {
      for (int lane = 0; lane < W; ++lane) {
        const int64_t key = i + lane < count ? i + lane : count - 1;
        if (key + AHEAD < listed) prefetch_row(view, DType::float32, which[key + AHEAD]);
        rows[lane] = static_cast<const float*>(view.keys) + which[key] * view.key_stride;
      }
      for (int64_t d = 0; d < view.dim; d += W)
        transpose_rows(
            [&](int r) __attribute__((always_inline)) { return rows[r] + d; }, columns + d * BLOCK + i,
            BLOCK);
    }
  }
  // The same by way of `wide`, for other types and lengths.
  void widen_and_turn(const View& view, DType dtype, const int32_t* which, int64_t count,
                      int64_t listed) const {
    const int64_t pitch = pitch_of(view.dim), lanes = round_up(count, W);
    for (int64_t i = 0; i < count; ++i) {
      if (i + AHEAD < listed) prefetch_row(view, dtype, which[i + AHEAD]);
      widen_row(row_at(view.keys, dtype, view.key_stride, which[i]), dtype, view.dim, wide + i * pitch);
    }
    if (count < lanes)
      std::memset(wide + count * pitch, 0, sizeof(float) * static_cast<size_t>((lanes - count) * pitch));
    for (int64_t i = 0; i < lanes; i += W)
      for (int64_t d = 0; d < view.dim; d += W)
        transpose(wide + i * pitch + d, pitch, columns + d * BLOCK + i, BLOCK);
  }

  // Scores of a view for `count` keys, up to BLOCK, the first of the `listed` keys of which: out [BLOCK].
  // `query` is widened.
  void score(const View& view, DType dtype, const float* query, const int32_t* which, int64_t count,
             int64_t listed, float* out) const {
    const int64_t lanes = round_up(count, W);
    if (dtype == DType::float32 && view.dim % W == 0)
      turn(view, which, count, listed);
    else
      widen_and_turn(view, dtype, which, count, listed);
    if (view.dim == 0) std::memset(out, 0, sizeof(float) * BLOCK);
    for (int64_t d = 0; d < view.dim; d += DEPTH) {
      const int64_t depth = view.dim - d < DEPTH ? view.dim - d : DEPTH;
      const float* const column = columns + d * BLOCK;
      int64_t i = 0;
      for (; i + CHAINS * W <= lanes; i += CHAINS * W)
        multiply<1, CHAINS>(query + d, 0, 1, column + i, BLOCK, depth, d > 0, out + i, BLOCK);
      for (; i < lanes; i += W)
        multiply<1, 1>(query + d, 0, 1, column + i, BLOCK, depth, d > 0, out + i, BLOCK);
    }
  }
};

}  // namespace CPR_ISA_NAMESPACE
}  // namespace cpr
