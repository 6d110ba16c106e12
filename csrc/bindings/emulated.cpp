// A module of the CUDA kernels as device/emulate/emulate.h runs them on a CPU, for tests. Never installed.
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
      "replace_kernel",
      [](const std::string& name, uintptr_t run, size_t stack) {
        using Run = void (*)(cpr::emulate::World*, const void*);
        cpr::emulate::replaced_kernels()[name] = {reinterpret_cast<Run>(run), stack};
      },
      "Run the function at an address in place of a kernel, with so many bytes of stack a thread.");
  m.def("restore_kernels", [] { cpr::emulate::replaced_kernels().clear(); }, "Run the sources again.");
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
