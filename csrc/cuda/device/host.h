// What the host side of every op shares: the device's limits, launches, and error sentences.
#pragma once
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <tuple>

#include "carver.h"
#include "device.h"
#include "device_limits.h"
#include "tuning.h"

namespace cpr {

struct Grid {
  uint32_t x = 1, y = 1, z = 1;
  int threads = 256;
  int64_t shared = 0;
  uint32_t cluster = 1;
  bool follows = false;  // a kernel of ours that lets this one start early, and that this one awaits
};

#ifdef CPR_EMULATE

inline DeviceLimits& emulated_limits() {
  static DeviceLimits limits{90, 232448, 60 << 20, true};
  return limits;
}

// Which kernels have run, for tests that want to have seen them all.
inline std::set<const void*>& launched_kernels() {
  static std::set<const void*> launched;
  return launched;
}

// A kernel's name as the source writes it, score_kernel<false, 2, 64>.
template <auto kernel>
std::string name_of_kernel() {
  const std::string all = __PRETTY_FUNCTION__;  // ... [with auto kernel = cpr::{anonymous}::NAME; ...]
  const size_t begin = all.find("kernel = "), end = all.find_first_of(";]", begin);
  const size_t scope = all.rfind("::", all.find('<', begin) < end ? all.find('<', begin) : end);
  return all.substr(scope + 2, end - scope - 2);
}

template <auto kernel, class Args>
const char* launch(const Grid& grid, const Args& args, void*) {
  launched_kernels().insert(reinterpret_cast<const void*>(kernel));
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return "an empty grid";
  if (grid.shared > emulated_limits().shared_bytes) return "more shared memory than a block can have";
  const auto replaced = emulate::replaced_kernels().find(name_of_kernel<kernel>());
  if (replaced == emulate::replaced_kernels().end())
    emulate::launch({grid.x, grid.y, grid.z}, grid.cluster, grid.threads, static_cast<size_t>(grid.shared),
                    emulate::STACK, [&] { kernel(args); });
  else
    emulate::launch({grid.x, grid.y, grid.z}, grid.cluster, grid.threads, static_cast<size_t>(grid.shared),
                    replaced->second.stack,
                    [&, run = replaced->second.run] { run(emulate::world(), &args); });
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

// What was found out or set for a kernel on a device, once and not at every call.
template <class Value>
struct Remembered {
  using Key = std::tuple<const void*, int, int64_t>;  // kernel, device, shared memory
  std::map<Key, Value> values;
  std::mutex alone;
  template <class Find>
  Value of(const void* function, int64_t shared, Find find) {
    int device = 0;
    cudaGetDevice(&device);
    const std::lock_guard<std::mutex> guard(alone);
    const Key key{function, device, shared};
    const auto known = values.find(key);
    return known != values.end() ? known->second : values[key] = find();
  }
};

// A kernel's attributes for the device: shared memory beyond 48 KB is requested, all of the multiprocessor's
// is preferred to cache then, and clusters beyond 8 blocks are not portable.
inline cudaError_t set_attributes(const void* function, const Grid& grid) {
  cudaError_t error = cudaSuccess;
  if (grid.shared > 48 * 1024) {
    error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(grid.shared));
    if (error == cudaSuccess)
      error = cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout,
                                   static_cast<int>(cudaSharedmemCarveoutMaxShared));
  }
  if (error == cudaSuccess && grid.cluster > 8)
    error = cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  return error;
}

// A launch as the runtime wants it.
struct Launch {
  cudaLaunchConfig_t config = {};
  cudaLaunchAttribute attributes[2] = {};

  Launch(const Grid& grid, void* stream) {
    config.gridDim = dim3(grid.x, grid.y, grid.z);
    config.blockDim = dim3(static_cast<unsigned>(grid.threads), 1, 1);
    config.dynamicSmemBytes = static_cast<size_t>(grid.shared);
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = attributes;
    if (grid.cluster > 1) {
      cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim.x = grid.cluster;
      attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    }
    if (grid.follows && tuning().early_start) {
      cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
      attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attribute.val.programmaticStreamSerializationAllowed = 1;
    }
  }
  Launch(const Launch&) = delete;  // config points into this
};

// Shared memory allowed to a kernel only ever grows, so that no thread takes from another what it is about to
// use.
inline cudaError_t prepare_launch(const void* function, const Grid& grid) {
  static Remembered<cudaError_t> attributes;
  if (grid.shared <= 48 * 1024 && grid.cluster <= 8) return cudaSuccess;
  static std::map<std::pair<const void*, int>, int64_t> largest;
  return attributes.of(function, grid.shared, [&] {
    int device = 0;
    cudaGetDevice(&device);
    int64_t& most = largest[{function, device}];
    if (grid.shared < most) return cudaSuccess;
    const cudaError_t error = set_attributes(function, grid);
    if (error == cudaSuccess) most = grid.shared;
    return error;
  });
}

// Can the device hold such a cluster at all? (A slice of a device may not.)
template <class Args>
bool cluster_fits(void (*kernel)(Args), const Grid& grid) {
  static Remembered<bool> fits;
  const void* function = reinterpret_cast<const void*>(kernel);
  const bool ready = prepare_launch(function, grid) == cudaSuccess;
  const bool known = fits.of(function, grid.shared, [&] {
    int clusters = 0;
    const Launch launch(grid, nullptr);
    return ready && cudaOccupancyMaxActiveClusters(&clusters, function, &launch.config) == cudaSuccess &&
           clusters > 0;
  });
  if (!known) cudaGetLastError();
  return known;
}

template <auto kernel, class Args>
const char* launch(const Grid& grid, const Args& args, void* stream) {
  static_assert(sizeof(Args) <= 4096, "kernel arguments are passed by value");
  const void* function = reinterpret_cast<const void*>(kernel);
  cudaError_t error = prepare_launch(function, grid);
  if (error == cudaSuccess) {
    const Launch as(grid, stream);
    Args copy = args;
    void* list[] = {&copy};
    error = cudaLaunchKernelExC(&as.config, function, list);
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

}  // namespace cpr
