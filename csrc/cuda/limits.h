// What the current device allows.
#pragma once
#include <cstdint>

namespace cpr {

struct DeviceLimits {
  int capability;        // 90 for 9.0
  int64_t shared_bytes;  // a block may opt in to
  int64_t cache_bytes;   // L2
  bool clusters_of_16;
};

DeviceLimits limits_of_current_device();

}  // namespace cpr
