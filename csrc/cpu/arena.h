// Working memory from one block.
#pragma once
#include "simd/simd.h"

namespace cpr {
namespace CPR_ISA_NAMESPACE {

inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Bump allocation; sized by running the same calls on null first.
struct Arena {
  char* base;
  int64_t used;
  template <class T>
  T* take(int64_t n) {
    T* place = reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(base) + static_cast<uintptr_t>(used));
    used = round_up(used + n * static_cast<int64_t>(sizeof(T)), 64);
    return place;
  }
};

}  // namespace CPR_ISA_NAMESPACE
}  // namespace cpr
