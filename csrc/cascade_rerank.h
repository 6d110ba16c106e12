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

// On the current CUDA device, all pointers but `weights` and `keep` there; null, or why the call cannot run.
// Candidates come ascending but for -1, none twice; indices are their places in the list. key_bias is of
// these places: [B, C], each row begins at the next multiple of four floats.
const char* cascade_rerank_cuda_workspace(const RerankArgs& args, int64_t* bytes);
const char* cascade_rerank_cuda(const RerankArgs& args, void* workspace, int64_t bytes, void* stream);

}  // namespace cpr
