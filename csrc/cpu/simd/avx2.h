// AVX2 with FMA: 8 lanes.
#pragma once

namespace cpr {
namespace CPR_ISA_NAMESPACE {

constexpr int W = 8;
using F = __m256;
using I = __m256i;
using Mask = uint32_t;  // bit i: lane i
constexpr Mask ALL = 0xFF;

inline F load(const float* p) { return _mm256_loadu_ps(p); }
// Two groups of 4 floats, `step` apart.
inline F load_groups(const float* p, int64_t step) {
  return _mm256_set_m128(_mm_loadu_ps(p + step), _mm_loadu_ps(p));
}
inline void store(float* p, F x) { _mm256_storeu_ps(p, x); }
inline F set1(float x) { return _mm256_set1_ps(x); }
inline F zero() { return _mm256_setzero_ps(); }
inline F add(F a, F b) { return _mm256_add_ps(a, b); }
inline F sub(F a, F b) { return _mm256_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm256_mul_ps(a, b); }
inline F max(F a, F b) { return _mm256_max_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
inline F root(F x) { return _mm256_sqrt_ps(x); }
inline F div(F a, F b) { return _mm256_div_ps(a, b); }

inline Mask bits(F x) { return static_cast<Mask>(_mm256_movemask_ps(x)); }
inline Mask ge(F a, F b) { return bits(_mm256_cmp_ps(a, b, _CMP_GE_OQ)); }
inline Mask gt(F a, F b) { return bits(_mm256_cmp_ps(a, b, _CMP_GT_OQ)); }
inline Mask eq(F a, F b) { return bits(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)); }
inline Mask unordered(F a, F b) { return bits(_mm256_cmp_ps(a, b, _CMP_UNORD_Q)); }

inline I load(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline void store(int32_t* p, I x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
inline I set1(int32_t x) { return _mm256_set1_epi32(x); }
inline I iota(int32_t first) {
  return _mm256_add_epi32(_mm256_set1_epi32(first), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Mask eq(I a, I b) { return bits(_mm256_castsi256_ps(_mm256_cmpeq_epi32(a, b))); }
inline Mask lt(I a, I b) { return bits(_mm256_castsi256_ps(_mm256_cmpgt_epi32(b, a))); }
inline Mask le(I a, I b) { return ALL & ~bits(_mm256_castsi256_ps(_mm256_cmpgt_epi32(a, b))); }

// Rounded to whole numbers, and taken into [-2^15 + 1, 2^15 - 1].
inline void store_rounded(int16_t* p, F x) {
  const __m256i wide = _mm256_cvtps_epi32(x);
  const __m128i whole = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_max_epi16(whole, _mm_set1_epi16(-32767)));
}
inline F to_float(I x) { return _mm256_cvtepi32_ps(x); }

// 16-bit products. A lane holds two numbers; `dot_pairs` adds both their products to the lane's sum.
#define CPR_PAIRS_TARGET
inline I dot_pairs(I sums, I a, I b) {
  sums = _mm256_add_epi32(sums, _mm256_madd_epi16(a, b));
  __asm__("" : "+x"(sums));  // or the compiler adds in another order, and runs out of registers
  return sums;
}
// Two vectors rounded to whole numbers below 2^15, side by side in an order of their own.
inline I to_pairs(F a, F b) { return _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b)); }

// Selected lanes moved to the front; what follows them is unspecified.
inline I front_order(Mask m) {  // lane k: the place of the k-th set bit
  const uint64_t wide = _pdep_u64(m, 0x0101010101010101ull) * 0xFFull;
  const uint64_t order = _pext_u64(0x0706050403020100ull, wide);
  return _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(order)));
}
inline F ordered(I order, F x) { return _mm256_permutevar8x32_ps(x, order); }
inline I ordered(I order, I x) { return _mm256_permutevar8x32_epi32(x, order); }
inline F compress(Mask m, F x) { return ordered(front_order(m), x); }
inline int count(Mask m) { return __builtin_popcount(m); }
inline Mask first_lanes(int64_t n) { return n >= W ? ALL : (1u << n) - 1u; }
inline F select(Mask m, F yes, F no) {
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i on = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(m)), lane), lane);
  return _mm256_blendv_ps(no, yes, _mm256_castsi256_ps(on));
}
inline Mask from_bytes_nonzero(const uint8_t* p) {
  const __m128i zero_bytes =
      _mm_cmpeq_epi8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)), _mm_setzero_si128());
  return ALL & ~static_cast<Mask>(_mm_movemask_epi8(zero_bytes));
}
inline float sum(F x) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
inline void sums(const F* x, float* out) {  // of 4 vectors
  const __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
}
inline float max_of(F x) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps(s, s, 1)));
}

// 8 rows of 8 become 8 columns: dst[c * dst_stride + r] = row(r)[c].
template <class Row>
inline __attribute__((always_inline)) void transpose_rows(Row row, float* dst, int64_t dst_stride) {
  __m256 r[8], t[8];
  for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(row(i));
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xEE);
    r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
  }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(dst + i * dst_stride, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    _mm256_storeu_ps(dst + (i + 4) * dst_stride, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
}

// Lane i gets lane i ^ J.
template <int J>
inline F swap_lanes(F x) {
  if constexpr (J == 1) return _mm256_permute_ps(x, 0xB1);
  if constexpr (J == 2) return _mm256_permute_ps(x, 0x4E);
  if constexpr (J == 4) return _mm256_permute2f128_ps(x, x, 0x01);
}
template <unsigned M>
inline F blend(F yes, F no) {
  return _mm256_blend_ps(no, yes, static_cast<int>(M));
}
inline F min(F a, F b) { return _mm256_min_ps(a, b); }

inline F widen_bfloat16(const uint16_t* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
inline F widen_float16(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

inline F round_even(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// x * 2^n for integers n in [-126, 0] held as floats.
inline F scale_by_power(F x, F n) {
  const __m256i exponent =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(x, _mm256_castsi256_ps(exponent));
}

}  // namespace CPR_ISA_NAMESPACE
}  // namespace cpr
