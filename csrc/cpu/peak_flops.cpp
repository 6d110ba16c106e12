// How fast can this machine multiply and add at all? The ceiling that a benchmark's floors are taken from.
#include <chrono>

#include "kernels.h"
#include "simd/simd.h"

namespace cpr {
namespace CPR_ISA_NAMESPACE {
namespace {

constexpr int CHAINS = 12;  // independent sums: more than hide the latency of two units, and all in registers
constexpr int64_t STEPS = 20000;
constexpr int TRIES = 40;

// kept [W]: numbers that differ, or lanes that do the same would be worked out once.
void multiply_and_add(float* kept) {
  F sums[CHAINS];
  const F factor = set1(0.999f), term = load(kept);
  for (int i = 0; i < CHAINS; ++i) sums[i] = add(term, set1(static_cast<float>(i)));
  for (int64_t step = 0; step < STEPS; ++step)
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; ++i) sums[i] = fma(sums[i], factor, term);
  for (int i = 1; i < CHAINS; ++i) sums[0] = add(sums[0], sums[i]);
  store(kept, sums[0]);
}

double flops_per_second(int threads) {
  double best = 0;
  for (int t = 0; t < TRIES; ++t) {
    const auto begin = std::chrono::steady_clock::now();
#pragma omp parallel num_threads(threads)
    {
      float kept[W];
      for (int lane = 0; lane < W; ++lane) kept[lane] = 0.001f * static_cast<float>(lane);
      __asm__ volatile("" : : "r"(kept) : "memory");  // the compiler knows neither what goes in
      multiply_and_add(kept);
      __asm__ volatile("" : : "r"(kept) : "memory");  // nor that nobody reads what comes out
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    const double rate = 2.0 * W * CHAINS * static_cast<double>(STEPS) * threads / took.count();
    if (rate > best) best = rate;
  }
  return best;
}

}  // namespace

extern const PeakKernels peak_kernels;
const PeakKernels peak_kernels = {flops_per_second};

}  // namespace CPR_ISA_NAMESPACE
}  // namespace cpr
