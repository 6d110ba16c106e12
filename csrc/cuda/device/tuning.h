// Choices that only a device can judge, set by experiments (bench/gpu_tune.py) and left alone otherwise. None
// changes a bit of any result where tests run them; wgmma_parts takes other instructions for products, whose
// rounding is the device's.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "device_limits.h"

namespace cpr {

struct Tuning {
  int64_t sweep = 0;         // queries a sweep at most; 0: the planner's rule
  int score_queries = 0;     // queries a score tile: 16, 64 or 128; 0: the planner's rule
  int select_threads = 0;    // of a block that selects: 256, 512 or 1024; 0: the planner's rule
  bool early_start = false;  // kernels of 9.0 and newer start while the one before them ends
  int wgmma_parts = -1;      // scores by wgmma on 9.0, by so many blocks that share a sweep's queries, or not
                             // at all (0); -1: the planner's rule
  int key_splits = -1;       // how often float32 keys are split by blocks that form scores by wgmma, at most,
                             // before they are split once for all; -1: the planner's rule
};

inline Tuning& tuning() {
  static Tuning chosen;
  return chosen;
}

// May a launch ask for an early start? Devices before 9.0 refuse to launch it.
inline bool can_start_early(int capability) { return capability >= 90; }

#ifdef CPR_WITHOUT_SM90A
constexpr bool HAS_SM90A = false;  // the core was built without code of sm_90a
#else
constexpr bool HAS_SM90A = true;
#endif

// CPR_CUDA_WGMMA=0 keeps a process from wgmma.
inline bool wgmma_is_off() {
  static const bool off = [] {
    const char* text = std::getenv("CPR_CUDA_WGMMA");
    return text && std::strcmp(text, "0") == 0;
  }();
  return off;
}

// Null where wgmma may be used, else why not, in words.
inline const char* why_no_wgmma(const DeviceLimits& limits) {
  if (limits.capability != 90) return "not of compute capability 9.0";
  if (!HAS_SM90A) return "the core was built without sm_90a";
  if (wgmma_is_off()) return "CPR_CUDA_WGMMA=0";
  return tuning().wgmma_parts == 0 ? "cuda_tune says so" : nullptr;
}

}  // namespace cpr
