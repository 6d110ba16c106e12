// Which stages weigh the views in the same way, for the planners of CPU and CUDA.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

namespace cpr {

// The first stage that weighs the views as stage s does; s itself when none before it does.
inline int first_same_weighting(const float* weights, int views, int s) {
  const auto row = [&](int stage) { return weights + static_cast<int64_t>(stage) * views; };
  int first = 0;
  while (!std::equal(row(s), row(s) + views, row(first))) ++first;
  return first;
}

// Whether every stage weighs some view, and each weight is 0 or a normal number: one that is subnormal may
// count as 0 on one thread and not on another.
inline bool are_stage_weights(const float* weights, int stages, int views) {
  for (int s = 0; s < stages; ++s) {
    bool weighs = false;
    for (int v = 0; v < views; ++v, ++weights) {
      if (*weights != 0.0f && !std::isnormal(*weights)) return false;
      weighs = weighs || *weights != 0.0f;
    }
    if (!weighs) return false;
  }
  return true;
}

// The view that a row of weights takes as it is, alone; -1 when it weighs or adds.
inline int only_view(const float* row, int views) {
  int found = -1;
  for (int v = 0; v < views; ++v) {
    if (row[v] == 0.0f) continue;
    if (found >= 0 || row[v] != 1.0f) return -1;
    found = v;
  }
  return found;
}

}  // namespace cpr
