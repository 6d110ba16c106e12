// Rows of scores that weigh several views. One order of steps, each rounded, so that a score has the same
// bits wherever it is formed.
#pragma once
#include "../simd/simd.h"

namespace cpr {
namespace CPR_ISA_NAMESPACE {

// A mix of n neighbouring scores, up to whole vectors: of_views [V], view_step apart, times weights [V] and
// added in order; last the keys' bias [n], unless null.
inline void mix_scores(const float* weights, int num_views, const float* of_views, int64_t view_step,
                       int64_t n, const float* bias, float* out) {
  for (int64_t i = 0; i < n; i += W) {
    F total = zero();
    bool first = true;
    for (int v = 0; v < num_views; ++v) {
      if (weights[v] == 0) continue;
      const F term = mul(load(of_views + v * view_step + i), set1(weights[v]));
      total = first ? term : add(total, term);
      first = false;
    }
    store(out + i, bias ? add(total, load(bias + i)) : total);
  }
}

// The bias of n keys, as `mix_scores` takes it: out [n], and zeros up to whole vectors.
template <class KeyAt>
inline void gather_bias(const float* key_bias, int64_t n, KeyAt key_at, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = key_bias[key_at(i)];
  for (int64_t i = n; i % W; ++i) out[i] = 0;
}

}  // namespace CPR_ISA_NAMESPACE
}  // namespace cpr
