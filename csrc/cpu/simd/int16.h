// Sixteen lanes of 16 bits, for what is kept in codes (codes.h): the same on every x86 machine with AVX2, as
// wider vectors bring nothing where each is packed to the front.
#pragma once
#include "simd.h"

namespace cpr {
namespace CPR_ISA_NAMESPACE {

constexpr int SHORTS = 16;

#if defined(CPR_ISA_avx512) || defined(CPR_ISA_avx2)

// For each mask of 8 lanes, the places of its set bits, as bytes of 16-bit lanes; what follows them is any.
struct FrontBytes {
  alignas(64) uint8_t of[256][16] = {};
  constexpr FrontBytes() {
    for (int mask = 0; mask < 256; ++mask)
      for (int lane = 0, n = 0; lane < 8; ++lane) {
        if (!(mask >> lane & 1)) continue;
        of[mask][2 * n] = static_cast<uint8_t>(2 * lane);
        of[mask][2 * n + 1] = static_cast<uint8_t>(2 * lane + 1);
        ++n;
      }
  }
};

using S = __m256i;   // 16 numbers
using On = __m256i;  // all ones in the lanes that are on, zeros in the others

inline S load_codes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void store_codes(int16_t* p, S x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
inline S set1_code(int x) { return _mm256_set1_epi16(static_cast<int16_t>(x)); }
inline S counting_from(int64_t first) {
  return _mm256_add_epi16(_mm256_set1_epi16(static_cast<int16_t>(first)),
                          _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
}
inline On above(S a, S b) { return _mm256_cmpgt_epi16(a, b); }
inline On both(On a, On b) { return _mm256_and_si256(a, b); }
inline On either(On a, On b) { return _mm256_or_si256(a, b); }
inline On but_not(On a, On b) { return _mm256_andnot_si256(b, a); }
inline bool any(On lanes) { return !_mm256_testz_si256(lanes, lanes); }
inline S tally(S counts, On lanes) { return _mm256_sub_epi16(counts, lanes); }
inline int64_t total(S counts) {  // each below 2^15
  const __m256i pairs = _mm256_madd_epi16(counts, _mm256_set1_epi16(1));
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xB1)));
}
inline On on_from_bits(uint32_t bits) {
  const __m256i lane =
      _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, -32768);
  return _mm256_cmpeq_epi16(_mm256_and_si256(_mm256_set1_epi16(static_cast<int16_t>(bits)), lane), lane);
}

// Lanes that are moved to the front: `count` of them.
struct Front {
  static constexpr FrontBytes bytes{};
  __m128i low, high;
  int in_low, count;

  explicit Front(On lanes) {
    const __m128i narrow = _mm_packs_epi16(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
    const unsigned bits = static_cast<unsigned>(_mm_movemask_epi8(narrow));
    low = _mm_load_si128(reinterpret_cast<const __m128i*>(bytes.of[bits & 0xFF]));
    high = _mm_load_si128(reinterpret_cast<const __m128i*>(bytes.of[bits >> 8]));
    in_low = __builtin_popcount(bits & 0xFF);
    count = __builtin_popcount(bits);
  }
  // Writes at most 8 lanes more than `count`.
  inline __attribute__((always_inline)) void store(void* place, S x) const {
    char* const out = static_cast<char*>(place);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_shuffle_epi8(_mm256_castsi256_si128(x), low));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 2 * in_low),
                     _mm_shuffle_epi8(_mm256_extracti128_si256(x, 1), high));
  }
};

constexpr int TURNED = 8;
// 16 rows of 8 become 8 columns: dst[c * dst_stride + r] = src[r * src_stride + c].
inline void turn_codes(const int16_t* src, int64_t src_stride, int16_t* dst, int64_t dst_stride) {
  __m256i r[8], t[8];
  for (int i = 0; i < 8; ++i) {
    const __m128i upper = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src + i * src_stride));
    const __m128i lower = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src + (i + 8) * src_stride));
    r[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(upper), lower, 1);
  }
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_epi16(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_epi16(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int half = 0; half < 2; ++half) {
      r[i + 2 * half] = _mm256_unpacklo_epi32(t[i + half], t[i + 2 + half]);
      r[i + 2 * half + 1] = _mm256_unpackhi_epi32(t[i + half], t[i + 2 + half]);
    }
  for (int i = 0; i < 4; ++i) {
    store_codes(dst + 2 * i * dst_stride, _mm256_unpacklo_epi64(r[i], r[i + 4]));
    store_codes(dst + (2 * i + 1) * dst_stride, _mm256_unpackhi_epi64(r[i], r[i + 4]));
  }
}

#else

struct S {
  int16_t lane[SHORTS];
};
using On = S;

template <class Step>
inline S each_lane(Step step) {
  S x;
  for (int i = 0; i < SHORTS; ++i) x.lane[i] = static_cast<int16_t>(step(i));
  return x;
}
inline S load_codes(const void* p) {
  S x;
  std::memcpy(x.lane, p, sizeof x.lane);
  return x;
}
inline void store_codes(int16_t* p, const S& x) { std::memcpy(p, x.lane, sizeof x.lane); }
inline S set1_code(int x) {
  return each_lane([&](int) { return x; });
}
inline S counting_from(int64_t first) {
  return each_lane([&](int i) { return first + i; });
}
inline On above(const S& a, const S& b) {
  return each_lane([&](int i) { return a.lane[i] > b.lane[i] ? -1 : 0; });
}
inline On both(const On& a, const On& b) {
  return each_lane([&](int i) { return a.lane[i] & b.lane[i]; });
}
inline On either(const On& a, const On& b) {
  return each_lane([&](int i) { return a.lane[i] | b.lane[i]; });
}
inline On but_not(const On& a, const On& b) {
  return each_lane([&](int i) { return a.lane[i] & ~b.lane[i]; });
}
inline S tally(const S& counts, const On& lanes) {
  return each_lane([&](int i) { return counts.lane[i] - lanes.lane[i]; });
}
inline int64_t total(const S& counts) {
  int64_t sum = 0;
  for (int i = 0; i < SHORTS; ++i) sum += counts.lane[i];
  return sum;
}
inline bool any(const On& lanes) { return total(lanes) != 0; }
inline On on_from_bits(uint32_t bits) {
  return each_lane([&](int i) { return bits >> i & 1 ? -1 : 0; });
}
struct Front {
  On on;
  int count;
  explicit Front(const On& lanes) : on(lanes), count(static_cast<int>(-total(lanes))) {}
  void store(void* place, const S& x) const {
    int16_t* out = static_cast<int16_t*>(place);
    for (int i = 0; i < SHORTS; ++i)
      if (on.lane[i]) *out++ = x.lane[i];
  }
};
constexpr int TURNED = 4;
inline void turn_codes(const int16_t* src, int64_t src_stride, int16_t* dst, int64_t dst_stride) {
  for (int c = 0; c < TURNED; ++c)
    for (int r = 0; r < SHORTS; ++r) dst[c * dst_stride + r] = src[r * src_stride + c];
}

#endif

inline On first_codes(int64_t n) {
  return above(set1_code(n < SHORTS ? static_cast<int>(n) : SHORTS), counting_from(0));
}

// step(i, lanes) for vectors of n codes: all lanes, but for those beyond the end.
template <class Step>
inline __attribute__((always_inline)) void for_codes(int64_t n, Step step) {
  int64_t i = 0;
  for (; i + SHORTS <= n; i += SHORTS) step(i, on_from_bits(0xFFFF));
  if (i < n) step(i, first_codes(n - i));
}

}  // namespace CPR_ISA_NAMESPACE
}  // namespace cpr
