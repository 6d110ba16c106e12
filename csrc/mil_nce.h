// Host signatures of cpr::mil_nce: one sweep over the keys for the loss and its gradient. Raw pointers; no
// torch.
#pragma once
#include <cstdint>

#include "cascade_topk.h"

namespace cpr {

struct LossArgs {
  const void* query;     // [B, D]
  const void* positive;  // [B, D]
  const void* keys;      // [N, D]
  int64_t query_stride, positive_stride, key_stride;
  int64_t num_queries, num_keys, dim;
  DType dtype;
  const int64_t* positives;  // [B, P], -1 is padding
  int64_t num_positives;     // P
  float temperature;
  const int64_t* query_ids;    // [B] or null
  const int64_t* key_ids;      // [N] or null
  const uint8_t* use_own;      // [B] or null
  int siblings;                // 1 positives, 2 left out, 0 negatives
  const int64_t* negatives;    // [B, M], -1 is padding, each place a logit of its own
  int64_t num_negatives = -1;  // M; below 0: all keys
  const float* own;            // [B] scores of the own pairs for a share's ranks, or null
  int threads;

  bool drawn() const { return num_negatives >= 0; }
};

constexpr int BEST = 5;  // entries of highest score that statistics are about

// All of a query's are NaN where a score that takes part, or its own pair's, is NaN or infinite in float32.
struct LossOut {
  float* loss;          // [B]
  float* lse_all;       // [B]
  float* lse_positive;  // [B]
  float* own_weight;    // [B], d loss / d (own logit)
  float* grad_query;    // [B, D] or null
  int64_t* stats;       // [B, 3] or null: logits above the own pair's, positives among the best 1 and BEST;
                        // -1 where the loss is NaN
};

// How a sweep would run on the CPU: threads take (group, part) in turn.
struct LossPlan {
  int lanes;      // float32 numbers a vector holds
  int64_t group;  // queries at a time
  int64_t groups;
  int64_t parts;  // of the keys
};

LossPlan mil_nce_cpu_plan(const LossArgs& args);

bool mil_nce_sweep_cpu(const LossArgs& args, const LossOut& out);

// What a share of the keys adds to the sums of each query; the own pair is not among them.
struct LossShare {
  float* sums;      // [B, 4] highest score, sum of exp((score - it) / T), and both of the positives; 0: none
                    // all NaN where a score that takes part is not finite
  float* attended;  // [B, 2, D] or null: keys weighted by those exponentials, and positives by theirs
  int32_t* ranks;   // [B, 2] or null: scores above the own pair's, and bit i: the i-th best is a positive
  float* best;      // [B, BEST] or null: highest scores; -inf: there are none
};

bool mil_nce_share_cpu(const LossArgs& args, const LossShare& out);

// d (grad_loss . loss) / d keys: grad_keys [N, D] float32.
bool mil_nce_keys_gradient_cpu(const LossArgs& args, const float* grad_loss, const float* lse_all,
                               const float* lse_positive, float* grad_keys);

// The same on the current CUDA device, queued on `stream`, all pointers there; null, or why the call cannot
// run. `sweep`, `gradient`, `stats`: which of the two calls the workspace is for, and whether grad_query and
// statistics are wanted.
const char* mil_nce_cuda_workspace(const LossArgs& args, bool sweep, bool gradient, bool stats,
                                   int64_t* bytes);
const char* mil_nce_sweep_cuda(const LossArgs& args, const LossOut& out, void* workspace, int64_t bytes,
                               void* stream);
const char* mil_nce_keys_gradient_cuda(const LossArgs& args, const float* grad_loss, const float* lse_all,
                                       const float* lse_positive, float* grad_keys, void* workspace,
                                       int64_t bytes, void* stream);

}  // namespace cpr
