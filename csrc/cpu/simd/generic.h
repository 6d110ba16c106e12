// Plain C++ with the compiler's 4-lane vectors: every other machine.
#pragma once
#include <cmath>

namespace cpr {
namespace CPR_ISA_NAMESPACE {

constexpr int W = 4;
typedef float F __attribute__((vector_size(16)));
typedef int32_t I __attribute__((vector_size(16)));
using Mask = uint32_t;  // bit i: lane i
constexpr Mask ALL = 0xF;

inline F load(const float* p) {
  F x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
inline F load_groups(const float* p, int64_t) { return load(p); }  // one group of 4
inline void store(float* p, F x) { std::memcpy(p, &x, sizeof x); }
inline F set1(float x) { return F{x, x, x, x}; }
inline F zero() { return F{0, 0, 0, 0}; }
inline F add(F a, F b) { return a + b; }
inline F sub(F a, F b) { return a - b; }
inline F mul(F a, F b) { return a * b; }
inline F fma(F a, F b, F c) { return a * b + c; }
inline F root(F x) { return F{sqrtf(x[0]), sqrtf(x[1]), sqrtf(x[2]), sqrtf(x[3])}; }
inline F div(F a, F b) { return a / b; }
inline F max(F a, F b) { return a > b ? a : b; }
inline F min(F a, F b) { return a > b ? b : a; }
// Lane i gets lane i ^ J.
template <int J>
inline F swap_lanes(F x) {
  return F{x[0 ^ J], x[1 ^ J], x[2 ^ J], x[3 ^ J]};
}
template <unsigned M>
inline F blend(F yes, F no) {
  return F{M & 1 ? yes[0] : no[0], M & 2 ? yes[1] : no[1], M & 4 ? yes[2] : no[2], M & 8 ? yes[3] : no[3]};
}
inline float sum(F x) { return (x[0] + x[2]) + (x[1] + x[3]); }
inline void sums(const F* x, float* out) {  // of 4 vectors
  for (int i = 0; i < 4; ++i) out[i] = sum(x[i]);
}
inline float max_of(F x) {
  const float a = x[0] > x[1] ? x[0] : x[1], b = x[2] > x[3] ? x[2] : x[3];
  return a > b ? a : b;
}

inline Mask bits(I x) { return (x[0] & 1) | (x[1] & 2) | (x[2] & 4) | (x[3] & 8); }
inline Mask ge(F a, F b) { return bits(a >= b); }
inline Mask gt(F a, F b) { return bits(a > b); }
inline Mask eq(F a, F b) { return bits(a == b); }
inline Mask unordered(F a, F b) { return ALL & ~(bits(a == a) & bits(b == b)); }

inline I load(const int32_t* p) {
  I x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
inline void store(int32_t* p, I x) { std::memcpy(p, &x, sizeof x); }
inline I set1(int32_t x) { return I{x, x, x, x}; }
inline I iota(int32_t first) { return I{first, first + 1, first + 2, first + 3}; }
inline Mask eq(I a, I b) { return bits(a == b); }
inline Mask le(I a, I b) { return bits(a <= b); }
inline Mask lt(I a, I b) { return bits(a < b); }

// Rounded to whole numbers, and taken into [-2^15 + 1, 2^15 - 1].
inline void store_rounded(int16_t* p, F x) {
  for (int i = 0; i < W; ++i)
    p[i] = static_cast<int16_t>(x[i] > -32767 ? x[i] < 32767 ? rintf(x[i]) : 32767 : -32767);
}
inline F to_float(I x) { return __builtin_convertvector(x, F); }

// 16-bit products. A lane holds two numbers; `dot_pairs` adds both their products to the lane's sum.
#define CPR_PAIRS_TARGET
inline I dot_pairs(I sums, I a, I b) {
  for (int i = 0; i < W; ++i) {
    const int32_t low = static_cast<int16_t>(a[i]) * static_cast<int16_t>(b[i]);
    const uint32_t high = static_cast<uint32_t>((a[i] >> 16) * (b[i] >> 16));
    sums[i] = static_cast<int32_t>(static_cast<uint32_t>(sums[i]) + static_cast<uint32_t>(low) + high);
  }
  return sums;
}
inline int32_t whole(float x) {
  return x > -32768.0f && x < 32767.0f ? static_cast<int32_t>(rintf(x)) : -32768;
}
// Two vectors rounded to whole numbers below 2^15, side by side in an order of their own.
inline I to_pairs(F a, F b) {
  I pairs;
  for (int i = 0; i < W; ++i)
    pairs[i] = static_cast<int32_t>((static_cast<uint32_t>(whole(b[i])) << 16) | (whole(a[i]) & 0xFFFF));
  return pairs;
}

// Selected lanes moved to the front; what follows them is unspecified.
inline I front_order(Mask m) {  // lane k: the place of the k-th set bit
  I order = {};
  for (int i = 0, n = 0; i < W; ++i) {
    order[n] = i;
    n += (m >> i) & 1;
    if (n == W) break;
  }
  return order;
}
template <class V>
inline V ordered(I order, V x) {
  return V{x[order[0]], x[order[1]], x[order[2]], x[order[3]]};
}
inline F compress(Mask m, F x) { return ordered(front_order(m), x); }
inline int count(Mask m) { return __builtin_popcount(m); }
inline Mask first_lanes(int64_t n) { return n >= W ? ALL : (1u << n) - 1u; }
inline F select(Mask m, F yes, F no) {
  F out = no;
  for (int i = 0; i < W; ++i)
    if ((m >> i) & 1) out[i] = yes[i];
  return out;
}
inline Mask from_bytes_nonzero(const uint8_t* p) {
  return (p[0] != 0) | (p[1] != 0) << 1 | (p[2] != 0) << 2 | (p[3] != 0) << 3;
}

// 4 rows of 4 become 4 columns: dst[c * dst_stride + r] = row(r)[c].
template <class Row>
inline __attribute__((always_inline)) void transpose_rows(Row row, float* dst, int64_t dst_stride) {
  for (int c = 0; c < W; ++c)
    for (int r = 0; r < W; ++r) dst[c * dst_stride + r] = row(r)[c];
}

inline float from_bfloat16(uint16_t bits);
inline float from_float16(uint16_t bits);
inline F widen_bfloat16(const uint16_t* p) {
  return F{from_bfloat16(p[0]), from_bfloat16(p[1]), from_bfloat16(p[2]), from_bfloat16(p[3])};
}
inline F widen_float16(const uint16_t* p) {
  return F{from_float16(p[0]), from_float16(p[1]), from_float16(p[2]), from_float16(p[3])};
}

inline F round_even(F x) { return F{rintf(x[0]), rintf(x[1]), rintf(x[2]), rintf(x[3])}; }
inline F scale_by_power(F x, F n) {
  return F{ldexpf(x[0], (int)n[0]), ldexpf(x[1], (int)n[1]), ldexpf(x[2], (int)n[2]),
           ldexpf(x[3], (int)n[3])};
}

}  // namespace CPR_ISA_NAMESPACE
}  // namespace cpr
