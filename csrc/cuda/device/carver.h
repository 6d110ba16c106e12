// Cuts one block of memory into parts; run on null first to learn the size.
#pragma once
#include <cstdint>

namespace cpr {

inline int64_t rounded_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Parts begin at multiples of 256 bytes.
struct Carver {
  char* base;
  int64_t used = 0;
  template <class T>
  T* take(int64_t count) {
    T* place = reinterpret_cast<T*>(base + used);
    used += rounded_up(count * static_cast<int64_t>(sizeof(T)), 256);
    return place;
  }
};

}  // namespace cpr
