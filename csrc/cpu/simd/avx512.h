// AVX-512 (F, BW, DQ, VL): 16 lanes.
#pragma once

namespace cpr {
namespace CPR_ISA_NAMESPACE {

constexpr int W = 16;
using F = __m512;
using I = __m512i;
using Mask = __mmask16;  // bit i: lane i
constexpr Mask ALL = 0xFFFF;

inline F load(const float* p) { return _mm512_loadu_ps(p); }
// Four groups of 4 floats, `step` apart.
inline F load_groups(const float* p, int64_t step) {
  const __m256 low = _mm256_set_m128(_mm_loadu_ps(p + step), _mm_loadu_ps(p));
  const __m256 high = _mm256_set_m128(_mm_loadu_ps(p + 3 * step), _mm_loadu_ps(p + 2 * step));
  return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
}
inline void store(float* p, F x) { _mm512_storeu_ps(p, x); }
inline F set1(float x) { return _mm512_set1_ps(x); }
inline F zero() { return _mm512_setzero_ps(); }
inline F add(F a, F b) { return _mm512_add_ps(a, b); }
inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F max(F a, F b) { return _mm512_max_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F select(Mask m, F yes, F no) { return _mm512_mask_blend_ps(m, no, yes); }
inline F root(F x) { return _mm512_sqrt_ps(x); }
inline F div(F a, F b) { return _mm512_div_ps(a, b); }
inline float sum(F x) { return _mm512_reduce_add_ps(x); }
inline float max_of(F x) { return _mm512_reduce_max_ps(x); }
inline void sums(const F* x, float* out) {  // of 4 vectors
  const F ab = add(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
  const F cd = add(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
  const __m512d low = _mm512_castps_pd(ab), high = _mm512_castps_pd(cd);
  const F all =
      add(_mm512_castpd_ps(_mm512_unpacklo_pd(low, high)), _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}

inline Mask ge(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
inline Mask gt(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
inline Mask eq(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
inline Mask unordered(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q); }

inline I load(const int32_t* p) { return _mm512_loadu_si512(p); }
inline void store(int32_t* p, I x) { _mm512_storeu_si512(p, x); }
inline I set1(int32_t x) { return _mm512_set1_epi32(x); }
inline I iota(int32_t first) {
  return _mm512_add_epi32(_mm512_set1_epi32(first),
                          _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
}
inline Mask eq(I a, I b) { return _mm512_cmpeq_epi32_mask(a, b); }
inline Mask le(I a, I b) { return _mm512_cmple_epi32_mask(a, b); }
inline Mask lt(I a, I b) { return _mm512_cmplt_epi32_mask(a, b); }

// Rounded to whole numbers, and taken into [-2^15 + 1, 2^15 - 1].
inline void store_rounded(int16_t* p, F x) {
  const __m256i whole = _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(x));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_max_epi16(whole, _mm256_set1_epi16(-32767)));
}
inline F to_float(I x) { return _mm512_cvtepi32_ps(x); }

// 16-bit products. A lane holds two numbers; `dot_pairs` adds both their products to the lane's sum.
#define CPR_PAIRS_TARGET __attribute__((target("avx512vnni")))  // set where they are used, not for all
CPR_PAIRS_TARGET inline I dot_pairs(I sums, I a, I b) { return _mm512_dpwssd_epi32(sums, a, b); }
// Two vectors rounded to whole numbers below 2^15, side by side in an order of their own.
inline I to_pairs(F a, F b) { return _mm512_packs_epi32(_mm512_cvtps_epi32(a), _mm512_cvtps_epi32(b)); }

// Selected lanes moved to the front; what follows them is unspecified. For vectors that share a mask, the
// order is made once: vpcompressps takes 5 cycles for each.
inline F compress(Mask m, F x) { return _mm512_maskz_compress_ps(m, x); }
inline I front_order(Mask m) {  // lane k: the place of the k-th set bit, in its low 4 bits
  const uint64_t wide = _pdep_u64(m, 0x1111111111111111ull) * 0xFull;
  const uint64_t order = _pext_u64(0xFEDCBA9876543210ull, wide);
  const I halves = _mm512_mask_set1_epi32(_mm512_set1_epi32(static_cast<int>(order)), 0xFF00,
                                          static_cast<int>(order >> 32));
  return _mm512_srlv_epi32(halves,
                           _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28));
}
inline F ordered(I order, F x) { return _mm512_permutexvar_ps(order, x); }
inline I ordered(I order, I x) { return _mm512_permutexvar_epi32(order, x); }
inline int count(Mask m) { return __builtin_popcount(m); }
inline Mask first_lanes(int64_t n) { return n >= W ? ALL : static_cast<Mask>((1u << n) - 1u); }
inline Mask from_bytes_nonzero(const uint8_t* p) {
  return _mm_test_epi8_mask(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), _mm_set1_epi8(-1));
}

// 16 rows of 16 become 16 columns: dst[c * dst_stride + r] = row(r)[c].
template <class Row>
inline __attribute__((always_inline)) void transpose_rows(Row row, float* dst, int64_t dst_stride) {
  __m512 r[16], t[16];
  for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_ps(row(i));
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(t[i]), _mm512_castps_pd(t[i + 2])));
    r[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(t[i]), _mm512_castps_pd(t[i + 2])));
    r[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(t[i + 1]), _mm512_castps_pd(t[i + 3])));
    r[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(t[i + 1]), _mm512_castps_pd(t[i + 3])));
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xDD);
    t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xDD);
  }
  for (int i = 0; i < 4; ++i) {
    _mm512_storeu_ps(dst + (i)*dst_stride, _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88));
    _mm512_storeu_ps(dst + (i + 8) * dst_stride, _mm512_shuffle_f32x4(t[i], t[i + 8], 0xDD));
    _mm512_storeu_ps(dst + (i + 4) * dst_stride, _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88));
    _mm512_storeu_ps(dst + (i + 12) * dst_stride, _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xDD));
  }
}

// Lane i gets lane i ^ J.
template <int J>
inline F swap_lanes(F x) {
  if constexpr (J == 1) return _mm512_permute_ps(x, 0xB1);
  if constexpr (J == 2) return _mm512_permute_ps(x, 0x4E);
  if constexpr (J == 4) return _mm512_shuffle_f32x4(x, x, 0xB1);
  if constexpr (J == 8) return _mm512_shuffle_f32x4(x, x, 0x4E);
}
template <unsigned M>
inline F blend(F yes, F no) {
  return _mm512_mask_blend_ps(static_cast<Mask>(M), no, yes);
}
inline F min(F a, F b) { return _mm512_min_ps(a, b); }

inline F widen_bfloat16(const uint16_t* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
inline F widen_float16(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

// 2^x for x <= 0 scaled by integers: x = n + f, returned as f in [-0.5, 0.5] and the vector scaled by 2^n.
inline F round_even(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F scale_by_power(F x, F n) { return _mm512_scalef_ps(x, n); }

}  // namespace CPR_ISA_NAMESPACE
}  // namespace cpr
