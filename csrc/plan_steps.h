// Host signatures of a mining plan's steps, row by row: unit length, expansion by neighbours, hub terms.
#pragma once
#include <cstdint>

namespace cpr {

// Rows [B, columns], `stride` elements apart.
template <typename T>
struct Rows {
  T* data;
  int64_t stride;
  T* operator[](int64_t row) const { return data + row * stride; }
};

struct UnitArgs {
  Rows<const float> given;  // [B, given_columns]; a row of zeros, or with NaN, is a missing view
  Rows<float> moved;        // [B, moved_columns], brought to length 1 in place, or to zeros
  int64_t num_rows, given_columns, moved_columns;
  bool* missing;  // [B], written
};

void unit_rows_cpu(const UnitArgs& args);

constexpr int MAX_EXPANDED_VIEWS = 8;

struct ExpandedView {
  Rows<const float> rows, keys;  // [B, columns], [N, columns]
  int64_t columns;
  float* out;  // [B, columns], contiguous
};

struct ExpandArgs {
  ExpandedView views[MAX_EXPANDED_VIEWS];
  int num_views;
  Rows<const int64_t> indices;  // [B, K], -1 is padding
  Rows<const float> weights;    // [B, K]
  int64_t num_rows, neighbors, num_keys;
  int threads;
};

// Each row plus the weighted sum of its neighbours, the views side by side brought to length sqrt(V). False
// where an index is beyond the keys; then `out` holds nothing of use.
bool expand_rows_cpu(const ExpandArgs& args);

// The mean of each row's `count` first scores [B, W]; -inf and NaN are left out, 0 without any.
void hub_terms_cpu(Rows<const float> scores, int64_t num_rows, int64_t count, float* terms);

struct HubArgs {
  Rows<const int64_t> indices;  // [B, W], -1 is padding
  Rows<const float> scores;     // [B, W]
  int64_t num_queries, width;
  const float* terms;  // [N]
  int64_t num_keys;
  int64_t topk;          // <= W
  int64_t* out_indices;  // [B, topk]
  float* out_scores;     // [B, topk]
};

// The topk of the highest score - terms[j] / 2, by (score descending, index ascending). False where it
// cannot: an index beyond the keys, or a NaN. Throws std::bad_alloc.
bool less_hubs_cpu(const HubArgs& args);

}  // namespace cpr
