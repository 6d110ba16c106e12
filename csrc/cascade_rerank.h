// Host signatures of cpr::cascade_rerank: the cascade over listed candidates. Raw pointers and sizes; no
// torch.
#pragma once
#include <cstdint>

#include "cascade_topk.h"

namespace cpr {

struct RerankArgs {
  CascadeArgs cascade;
  const int64_t*
      candidates;  // [B, C], rows candidates_stride apart; outside [0, N) is padding, repeats count once
  int64_t num_candidates;  // C
  int64_t candidates_stride;
};

// False when memory ran out.
bool cascade_rerank_cpu(const RerankArgs& args);

}  // namespace cpr
