// A module of the CUDA kernels as emulate.h runs them on a CPU, for tests. Never installed.
#include <optional>
#include <utility>
#include <vector>

#include "../cuda/device/host.h"
#include "../cuda/device/remembered.h"
#include "cuda.h"

PYBIND11_MODULE(_emulated, m) {
  m.doc() = "The CUDA kernels of cpr_kernels, emulated thread by thread on a CPU.";
  cpr::cuda_bindings::bind(m);
  m.def(
      "set_seed", [](uint32_t seed) { cpr::emulate::seed() = seed; },
      "Order of threads between barriers; 0: as numbered.");
  m.def(
      "kernels_launched",
      [] {
        const size_t count = cpr::launched_kernels().size();
        cpr::launched_kernels().clear();
        return count;
      },
      "How many different kernels have run since the last call of this.");
  m.def(
      "early_starts", [] { return std::exchange(cpr::early_starts(), 0); },
      "How many launches let a kernel start before the one before it ends, since the last call of this.");
  m.def(
      "remembered",
      [](const std::vector<std::optional<int>>& found) {
        cpr::Remembered<int, int> one;
        std::vector<std::optional<int>> answers;
        for (const std::optional<int>& value : found) answers.push_back(one.of(0, [&] { return value; }));
        return answers;
      },
      "What remembered.h answers where these values are found one after the other, None where none is.");
  m.def(
      "set_limits",
      [](int capability, int64_t shared_bytes, int64_t cache_bytes, bool clusters_of_16) {
        cpr::emulated_limits() = {capability, shared_bytes, cache_bytes, clusters_of_16};
      },
      "The device that is pretended.");
}
