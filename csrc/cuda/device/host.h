// What the host side of every op shares: the device's limits, launches, and error sentences.
#pragma once
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "carver.h"
#include "device.h"
#include "device_limits.h"
#include "remembered.h"
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

// Which kernels have run, for tests that want to have seen them all, and how often one started early.
inline std::set<const void*>& launched_kernels() {
  static std::set<const void*> launched;
  return launched;
}
inline int64_t& early_starts() {
  static int64_t count = 0;
  return count;
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
  early_starts() += grid.follows && tuning().early_start && can_start_early(emulated_limits().capability);
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

using OnDevice = std::pair<const void*, int>;  // kernel, device

inline int current_device() {
  int device = 0;
  cudaGetDevice(&device);
  return device;
}

// The compute capability of the current device, 90 for 9.0; 0 where it cannot be found out.
inline int current_capability() {
  static Remembered<int, int> capabilities;
  const int device = current_device();
  return capabilities
      .of(device,
          [&]() -> std::optional<int> {
            int major = 0, minor = 0;
            if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
                cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess)
              return std::nullopt;
            return major * 10 + minor;
          })
      .value_or(0);
}

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
    if (grid.follows && tuning().early_start && can_start_early(current_capability())) {
      cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
      attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attribute.val.programmaticStreamSerializationAllowed = 1;
    }
  }
  Launch(const Launch&) = delete;  // config points into this
};

// Shared memory allowed to a kernel only ever grows, so that no thread takes from another what it is about to
// use. An error is returned to this call and not kept for later ones.
inline cudaError_t prepare_launch(const void* function, const Grid& grid) {
  if (grid.shared <= 48 * 1024 && grid.cluster <= 8) return cudaSuccess;
  static std::map<OnDevice, int64_t> allowed;  // bytes
  static std::mutex alone;
  const std::lock_guard<std::mutex> guard(alone);
  const OnDevice key{function, current_device()};
  const auto known = allowed.find(key);
  if (known != allowed.end() && grid.shared <= known->second) return cudaSuccess;
  const cudaError_t error = set_attributes(function, grid);
  if (error == cudaSuccess) allowed[key] = grid.shared;
  return error;
}

// Can the device hold such a cluster at all? (A slice of a device may not.) No, where it cannot be found out.
template <class Args>
bool cluster_fits(void (*kernel)(Args), const Grid& grid) {
  static Remembered<std::pair<OnDevice, int64_t>, bool> fits;  // by shared memory
  const void* function = reinterpret_cast<const void*>(kernel);
  const std::optional<bool> known =
      fits.of({{function, current_device()}, grid.shared}, [&]() -> std::optional<bool> {
        int clusters = 0;
        const Launch launch(grid, nullptr);
        if (prepare_launch(function, grid) == cudaSuccess &&
            cudaOccupancyMaxActiveClusters(&clusters, function, &launch.config) == cudaSuccess)
          return clusters > 0;
        cudaGetLastError();  // not the next call's
        return std::nullopt;
      });
  return known.value_or(false);
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
