// Host signature of cpr::cascade_topk. Raw pointers and sizes; no torch.
#pragma once
#include <cstdint>

#include "types.h"

namespace cpr {

struct CascadeArgs {
  const View* views;
  int num_views;
  DType dtype;
  int64_t num_queries;       // B
  int64_t num_keys;          // N
  const float* weights;      // [S, V]
  const int64_t* keep;       // [S], non-increasing, >= 1
  int num_stages;            // S
  const int64_t* query_ids;  // [B] or null
  const int64_t* key_ids;    // [N] or null
  const uint8_t* exclude;    // [B, N] or null, rows exclude_stride bytes apart
  int64_t exclude_stride;
  const float* key_bias;  // [N] or null, added to the last stage's scores; on 16 bytes for CUDA
  int64_t bias_stride;    // 0; of a bias [B, N], as cascade_rerank has on CUDA: between its rows
  int64_t* indices;       // out [B, k]
  float* scores;          // out [B, k]
  int threads;
};

// Returns how many queries' sampled brackets missed twice, so that they were selected exhaustively (for
// tests); -1 when memory ran out.
int64_t cascade_topk_cpu(const CascadeArgs& args);

// How the CPU would run a cascade, with the instruction set in use.
struct CpuPlan {
  int lanes;          // float32 numbers a vector holds
  int threads;        // that take part, at most
  int64_t group;      // queries that share a visit of the keys
  int64_t groups;     // threads take them in turn
  int parts;          // of the keys; above 1, threads share a group
  int passes;         // over the keys, the last over those not seen yet
  int levels;         // leading stages that are decided while the keys stream by
  bool int16_scores;  // by 16-bit products first, and exactly what is close
  const char* bias;   // where key_bias is added; empty without one
};

CpuPlan cascade_topk_cpu_plan(const CascadeArgs& args);

// On the current CUDA device, all pointers but `weights` and `keep` there. Both return null, or why the call
// cannot run.
const char* cascade_topk_cuda_workspace(const CascadeArgs& args, int64_t* bytes);
const char* cascade_topk_cuda(const CascadeArgs& args, void* workspace, int64_t bytes, void* stream);

}  // namespace cpr
