// What a device allows, and what the kernels' arguments hold.
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

constexpr int MAX_VIEWS = 8;
constexpr int MAX_ROWS = 8;
constexpr int MAX_STAGES = 32;
constexpr int MAX_COLUMNS = 16;  // of a queue

}  // namespace cpr
