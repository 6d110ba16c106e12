// The few vector operations that the CPU kernels are written in, for the instruction set of this translation
// unit. Included once per instruction set, into a namespace of its own: nothing here may have weak external
// linkage that another instruction set could pick up, so no standard containers.
#pragma once
#include <cstdint>
#include <cstring>

#define CPR_JOIN_(a, b) a##b
#define CPR_NAMESPACE(isa) CPR_JOIN_(isa_, isa)
#define CPR_ISA_NAMESPACE CPR_NAMESPACE(CPR_ISA)

#if defined(CPR_ISA_avx512) || defined(CPR_ISA_avx2)
#include <immintrin.h>
#endif

#if defined(CPR_ISA_avx512)
#include "avx512.h"
#elif defined(CPR_ISA_avx2)
#include "avx2.h"
#else
#include "generic.h"
#endif

namespace cpr {
namespace CPR_ISA_NAMESPACE {

// Round-to-nearest with denormals kept, whatever the caller's thread was set to; restored on leaving.
struct FloatEnvironment {
#if defined(__SSE2__)
  unsigned saved = __builtin_ia32_stmxcsr();
  FloatEnvironment() { __builtin_ia32_ldmxcsr(0x1F80); }
  ~FloatEnvironment() { __builtin_ia32_ldmxcsr(saved); }
#endif
};

// W rows of W become W columns: dst[c * dst_stride + r] = src[r * src_stride + c].
inline void transpose(const float* src, int64_t src_stride, float* dst, int64_t dst_stride) {
  transpose_rows(
      [&](int r) __attribute__((always_inline)) { return src + r * src_stride; }, dst, dst_stride);
}

inline float from_bfloat16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

inline float from_float16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1Fu;
  const uint32_t mantissa = bits & 0x3FFu;
  uint32_t wide;
  float value;
  if (exponent == 0) {  // zero or denormal: mantissa * 2^-24
    value = static_cast<float>(mantissa) * 5.9604644775390625e-8f;
    std::memcpy(&wide, &value, sizeof wide);
    wide |= sign;
  } else if (exponent == 31) {
    wide = sign | 0x7F800000u | (mantissa << 13);
  } else {
    wide = sign | ((exponent + 112) << 23) | (mantissa << 13);
  }
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

}  // namespace CPR_ISA_NAMESPACE
}  // namespace cpr
