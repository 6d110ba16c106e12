// Host signature of a tuned miner's last step: neighbours ranked anew, less their hub terms.
#pragma once
#include <cstdint>

namespace cpr {

struct HubArgs {
  const int64_t* indices;  // [B, W], -1 is padding, rows indices_stride elements apart
  const float* scores;     // [B, W], rows scores_stride elements apart
  int64_t indices_stride, scores_stride;
  int64_t num_queries, width;
  const float* terms;  // [N]
  int64_t num_keys;
  int64_t topk;          // <= W
  int64_t* out_indices;  // [B, topk]
  float* out_scores;     // [B, topk]
};

// The topk of the highest score - terms[j] / 2, by (score descending, index ascending). False where it cannot: an
// index beyond the keys, or a NaN. Throws std::bad_alloc.
bool less_hubs_cpu(const HubArgs& args);

}  // namespace cpr
