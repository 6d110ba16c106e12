// What the host side of every op shares: the device's limits, launches, and error sentences.
#pragma once
#include <cstdint>
#include <cstring>

#include "device.h"
#include "limits.h"

namespace cpr {

struct Grid {
  uint32_t x = 1, y = 1, z = 1;
  int threads = 256;
  int64_t shared = 0;
  uint32_t cluster = 1;
};

#ifdef CPR_EMULATE

inline DeviceLimits& emulated_limits() {
  static DeviceLimits limits{90, 232448, 60 << 20, true};
  return limits;
}

template <class Args>
const char* launch(void (*kernel)(Args), const Grid& grid, const Args& args, void*) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return "an empty grid";
  if (grid.shared > emulated_limits().shared_bytes) return "more shared memory than a block can have";
  emulate::launch({grid.x, grid.y, grid.z}, grid.cluster, grid.threads, static_cast<size_t>(grid.shared),
                  [&] { kernel(args); });
  return nullptr;
}
template <class Args>
bool cluster_fits(void (*)(Args), const Grid&) {
  return true;
}
inline const char* fill_zero(void* memory, int64_t bytes, void*) {
  std::memset(memory, 0, static_cast<size_t>(bytes));
  return nullptr;
}

#else

// A kernel's attributes set, and a launch described. `attribute` must live as long as `config`.
inline cudaError_t configure(const void* function, const Grid& grid, void* stream, cudaLaunchConfig_t& config,
                             cudaLaunchAttribute& attribute) {
  cudaError_t error = cudaSuccess;
  if (grid.shared > 48 * 1024)
    error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(grid.shared));
  if (error == cudaSuccess && grid.cluster > 8)
    error = cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  config.gridDim = dim3(grid.x, grid.y, grid.z);
  config.blockDim = dim3(static_cast<unsigned>(grid.threads), 1, 1);
  config.dynamicSmemBytes = static_cast<size_t>(grid.shared);
  config.stream = static_cast<cudaStream_t>(stream);
  if (grid.cluster > 1) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = grid.cluster;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    config.attrs = &attribute;
    config.numAttrs = 1;
  }
  return error;
}

// Can the device hold such a cluster at all? (A slice of a device may not.)
template <class Args>
bool cluster_fits(void (*kernel)(Args), const Grid& grid) {
  cudaLaunchConfig_t config = {};
  cudaLaunchAttribute attribute = {};
  int clusters = 0;
  const void* function = reinterpret_cast<const void*>(kernel);
  const bool known = configure(function, grid, nullptr, config, attribute) == cudaSuccess &&
                     cudaOccupancyMaxActiveClusters(&clusters, function, &config) == cudaSuccess;
  if (!known) cudaGetLastError();
  return known && clusters > 0;
}

template <class Args>
const char* launch(void (*kernel)(Args), const Grid& grid, const Args& args, void* stream) {
  static_assert(sizeof(Args) <= 4096, "kernel arguments are passed by value");
  const void* function = reinterpret_cast<const void*>(kernel);
  cudaLaunchConfig_t config = {};
  cudaLaunchAttribute attribute = {};
  cudaError_t error = configure(function, grid, stream, config, attribute);
  if (error == cudaSuccess) {
    Args copy = args;
    void* list[] = {&copy};
    error = cudaLaunchKernelExC(&config, function, list);
  }
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // the error is reported here, not by the next call
  return cudaGetErrorString(error);
}
inline const char* fill_zero(void* memory, int64_t bytes, void* stream) {
  const cudaError_t error =
      cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), static_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

#endif

// Cuts one block of memory into parts; run on null first to learn the size. Parts begin at multiples of 256
// bytes.
struct Carver {
  char* base;
  int64_t used = 0;
  template <class T>
  T* take(int64_t count) {
    T* place = reinterpret_cast<T*>(base + used);
    used += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
    return place;
  }
};

}  // namespace cpr
