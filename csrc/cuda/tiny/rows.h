// Rows of features of a tiny call on their way to the tensor cores: pieces of 16 bytes are copied to shared
// memory, from where float32 numbers are split in registers, by the thread that multiplies them (keys) or
// that stores both planes (queries). Bits are those of split_rows.h.
#pragma once
#include <utility>

#include "../score.h"
#include "memory.h"

namespace cpr {

// One operand of a view, as the caller has it.
struct TinyRows {
  const void* rows;
  int64_t stride;    // elements
  bool whole, full;  // rows begin and end on 16 bytes; and have TINY_DIM features
};

template <int PLANES>
struct TinyFeature {
  using Type = uint16_t;
};
template <>
struct TinyFeature<2> {
  using Type = float;
};

// Starts copying COUNT pieces, each FROM bytes behind the last one, to places TO bytes apart.
template <int TO, int FROM, int... I>
CPR_DEVICE void copy_all(unsigned char* to, const void* from, std::integer_sequence<int, I...>) {
  (copy_async_at<I * TO, I * FROM>(to, from), ...);
}

// The same of a row that is not full, from feature d on: zeros beyond its end.
template <class T, int COUNT, int TO, int FROM>
CPR_DEVICE void copy_some(const TinyRows& rows, const T* from, int d, int dim, unsigned char* to) {
#pragma unroll 1
  for (int i = 0; i < COUNT; ++i, d += FROM / static_cast<int>(sizeof(T)), to += TO) {
    if (rows.whole)
      copy_async(to, from + (d < dim ? d : 0), d < dim);
    else
#pragma unroll 1
      for (int f = 0; f < static_cast<int>(16 / sizeof(T)); ++f)
        reinterpret_cast<T*>(to)[f] = d + f < dim ? from[d + f] : T(0);
  }
}

// A lane's pieces of ROWS rows eight apart, `to` ROW bytes apart. Rows beyond the last one repeat it.
template <class T, int ROWS, int ROW, int COUNT, int TO, int FROM>
CPR_DEVICE void copy_rows(const TinyRows& rows, uint32_t row, uint32_t last, int d, int dim,
                          unsigned char* to) {
  const T* const from = static_cast<const T*>(rows.rows);
  if (rows.full) {
#pragma unroll
    for (uint32_t r = 0; r < ROWS; ++r) {
      const uint32_t at = row + 8 * r < last ? row + 8 * r : last;
      copy_all<TO, FROM>(to + r * ROW, from + (at * rows.stride + d),
                         std::make_integer_sequence<int, COUNT>{});
    }
    return;
  }
#pragma unroll 1
  for (int r = 0; r < ROWS; ++r, row += 8, to += ROW)
    copy_some<T, COUNT, TO, FROM>(rows, from + (row < last ? row : last) * rows.stride, d, dim, to);
}

// The largest magnitude of the features in COUNT pieces, as `largest` says, among LANES lanes.
template <int COUNT, int LANES>
CPR_DEVICE uint32_t largest_of(const Features (&pieces)[COUNT]) {
  float most = pieces[0].of[0];
#pragma unroll
  for (int i = 1; i < 4 * COUNT; ++i) most = larger_magnitude(most, pieces[i / 4].of[i % 4]);
#pragma unroll
  for (int lanes = 1; lanes < LANES; lanes *= 2) most = larger_magnitude(most, shuffle_xor(most, lanes));
  return bits_of(most) & 0x7FFFFFFFu;
}

// A row's features as they were copied to shared memory, of which a lane has COUNT pieces, and what scales
// them below 1.
template <int COUNT, int LANES, int DISTANCE>
struct SplitPieces {
  Features pieces[COUNT];
  int exponent;
  float scale, low_scale;

  CPR_DEVICE explicit SplitPieces(unsigned char* from) {
    // of rows that one normal number scales, and so does it times LOW_SCALE
    constexpr uint32_t LEAST = 10u << 23, END = 0x7E800000u, ONE_HALF = 0x3F000000u;
    load(from);
    uint32_t top = largest_of<COUNT, LANES>(pieces);
    if (top == 0) top = ONE_HALF;  // as good as any
    exponent = exponent_of(top);
    scale = power_of_two(-exponent), low_scale = power_of_two(11 - exponent);
    if (top - LEAST >= END - LEAST) {
      scale_far(from, top);
      scale = 1.0f, low_scale = LOW_SCALE;
    }
  }

  // Features 2 i and 2 i + 1 in both planes, as split_pair has them: every step but the last is exact.
  CPR_DEVICE void split(int i, uint32_t& high, uint32_t& low) const {
    constexpr uint16_t MINUS_2048 = 0xE800;
    static_assert(LOW_SCALE == 2048.0f, "2^11");
    const float a = pieces[i / 2].of[2 * (i % 2)], b = pieces[i / 2].of[2 * (i % 2) + 1];
    high = to_halves(a * scale, b * scale);
    float less_a, less_b;
    from_halves(scaled_halves<MINUS_2048>(high), less_a, less_b);
    low = to_halves(fused(a, low_scale, less_a), fused(b, low_scale, less_b));
  }

 private:
  CPR_DEVICE void load(const unsigned char* from) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) pieces[i] = *reinterpret_cast<const Features*>(from + i * DISTANCE);
  }
  // By two numbers, as split_row does; where the features lie, for it is seldom. Zeros of odd rows.
  CPR_DEVICE void scale_far(unsigned char* from, uint32_t top) {
    const bool odd = top >= 0x7F800000u;
    const int step = exponent < 126 ? exponent : 126;
    const float first = power_of_two(-step), rest = power_of_two(step - exponent);
#pragma unroll 1
    for (int i = 0; i < 4 * COUNT; ++i) {
      float* at = reinterpret_cast<float*>(from + i / 4 * DISTANCE) + i % 4;
      *at = odd ? 0.0f : *at * first * rest;
    }
    load(from);
    if (odd) exponent = ODD;
  }
};

}  // namespace cpr
