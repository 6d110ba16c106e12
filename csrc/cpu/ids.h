// Ids, hashed.
#pragma once
#include <cstdint>

namespace cpr {

// Ids are compared by 32 hashed bits first, then exactly.
inline int32_t hash_of(int64_t id) {
  return static_cast<int32_t>((static_cast<uint64_t>(id) * 0x9E3779B97F4A7C15ull) >> 32);
}

}  // namespace cpr
