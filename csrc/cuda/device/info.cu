// The CUDA devices of this machine, and what one of them allows.
#include "host.h"
#include "info.h"

namespace cpr {

#ifdef CPR_EMULATE

std::string cuda_unavailable() { return ""; }
const char* use_device(int index) { return index == 0 ? nullptr : "there is one emulated device"; }
DeviceLimits limits_of_current_device() { return emulated_limits(); }

#else

std::string cuda_unavailable() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count > 0) return "";
  cudaGetLastError();
  return error == cudaSuccess ? "no CUDA device" : cudaGetErrorString(error);
}

const char* use_device(int index) {
  const cudaError_t error = cudaSetDevice(index);
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();
  return cudaGetErrorString(error);
}

DeviceLimits limits_of_current_device() {
  int device = 0, major = 0, minor = 0, shared = 0, cache = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaDeviceGetAttribute(&cache, cudaDevAttrL2CacheSize, device);
  return {major * 10 + minor, shared, cache, major == 9 || major == 10};
}

#endif

}  // namespace cpr
