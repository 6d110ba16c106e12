// Rows of features made ready for the tensor cores: float32 in two float16 planes (score.h), 16-bit features
// copied to aligned rows.
#pragma once
#include <climits>

#include "../types.h"
#include "device/device.h"
#include "device/device_limits.h"

namespace cpr {

constexpr int SCORE_THREADS = 256;
// The exponent of a row that holds infinities or NaN; its products are formed one by one.
constexpr int ODD = INT_MIN;

// Rows in, planes out: split in two, or 16-bit features copied to aligned, padded rows.
struct PrepareArgs {
  const void* rows;
  int64_t stride;
  int64_t count;
  int dim, padded;  // padded: what a row of a plane holds, zeros beyond dim
  DType dtype;
  bool split;
  float low_scale;      // the low plane holds the rest times this
  uint16_t* planes;     // [1 or 2][count, padded], or packed
  int32_t* exponents;   // [count] when split
  bool packed = false;  // as Packed says
};

CPR_DEVICE float element(const void* rows, DType dtype, int64_t at) {
  if (dtype == DType::float32) return static_cast<const float*>(rows)[at];
  const uint16_t bits = static_cast<const uint16_t*>(rows)[at];
  return dtype == DType::bfloat16 ? float_of(static_cast<uint32_t>(bits) << 16) : from_half(bits);
}

struct PrepareList {
  PrepareArgs of[2 * MAX_VIEWS];
};

CPR_DEVICE float power_of_two(int exponent) {  // exponent in [-126, 127]
  return float_of(static_cast<uint32_t>(exponent + 127) << 23);
}

// Rows that a warp prepares at a time: their loads are in flight together.
constexpr int PREPARED_AT_ONCE = 4;
constexpr int64_t PREPARED = SCORE_THREADS / 32 * PREPARED_AT_ONCE;  // rows a block

struct alignas(16) Features {
  float of[4];
};
struct alignas(8) Halves {
  uint32_t of[2];
};

// Features d to d + 3 of a row, zeros beyond its end. WHOLE: rows of float32 begin and end on 16 bytes.
template <bool WHOLE>
CPR_DEVICE Features features_from(const PrepareArgs& args, int64_t row, int d) {
  Features features{};
  if constexpr (WHOLE) {
    const float* from = static_cast<const float*>(args.rows) + row * args.stride + d;
    if (d < args.dim) features = *reinterpret_cast<const Features*>(from);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (d + i < args.dim) features.of[i] = element(args.rows, args.dtype, row * args.stride + d + i);
  }
  return features;
}

// Magnitudes order as their bits do, NaN above infinity above all.
CPR_DEVICE uint32_t largest(const Features& features, uint32_t top) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t magnitude = bits_of(features.of[i]) & 0x7FFFFFFFu;
    top = magnitude > top ? magnitude : top;
  }
  return top;
}

// Where feature d of a row goes, row by row.
struct InRows {
  uint16_t *high, *low;
  CPR_DEVICE InRows(const PrepareArgs& args, int64_t row)
      : high(args.planes + row * args.padded), low(high + args.count * args.padded) {}
  CPR_DEVICE uint16_t* at(int plane, int d) const { return (plane ? low : high) + d; }
};

// The same in blocks of 64 rows by 64 features, [rows / 64][padded / 64][planes][64, 64], zeros where there
// is nothing. A row of a block is as the tensor cores want it in shared memory (device/hopper.h).
constexpr int PACKED = 64;
struct Packed {
  uint16_t* first;  // of the row, in its first block
  int swizzle, planes;
  CPR_DEVICE Packed(const PrepareArgs& args, int64_t row) : planes(args.split ? 2 : 1) {
    const int64_t block = row / PACKED * (args.padded / PACKED) * planes;
    first = args.planes + (block * PACKED + row % PACKED) * PACKED;
    swizzle = static_cast<int>(row & 7);
  }
  CPR_DEVICE uint16_t* at(int plane, int d) const {
    const int block = d / PACKED * planes + plane, piece = (d % PACKED >> 3) ^ swizzle;
    return first + block * PACKED * PACKED + piece * 8 + d % 8;
  }
};

// One warp, one row of features, of which a lane holds the first four that are its own.
template <bool WHOLE, class Place = InRows>
CPR_DEVICE void split_row(const PrepareArgs& args, int64_t row, int lane, const Features& first) {
  uint32_t top = largest(first, 0);
#pragma unroll 1
  for (int d = 128 + 4 * lane; d < args.dim; d += 128) top = largest(features_from<WHOLE>(args, row, d), top);
  top = warp_max(top);
  const bool odd = top >= 0x7F800000u;
  int exponent = static_cast<int>(top >> 23) - 126;  // top < 2^exponent
  if (top < 0x00800000u) exponent = -126;            // zero or subnormal
  if (lane == 0) args.exponents[row] = odd ? ODD : exponent;
  // 2^-exponent in two steps, of which the second is 1 but for the two largest exponents
  const int step = exponent < 126 ? exponent : 126;
  const float scale = odd ? 0.0f : power_of_two(-step), rest = power_of_two(step - exponent);
  const Place to(args, row);
#pragma unroll 1
  for (int d = 4 * lane; d < args.padded; d += 128) {
    const Features features = d < 128 ? first : features_from<WHOLE>(args, row, d);
    Halves of_high, of_low;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float a = odd ? 0.0f : features.of[2 * i] * scale * rest,
                  b = odd ? 0.0f : features.of[2 * i + 1] * scale * rest;
      of_high.of[i] = to_halves(a, b);
      of_low.of[i] = to_halves((a - from_half(static_cast<uint16_t>(of_high.of[i]))) * args.low_scale,
                               (b - from_half(static_cast<uint16_t>(of_high.of[i] >> 16))) * args.low_scale);
    }
    *reinterpret_cast<Halves*>(to.at(0, d)) = of_high;
    *reinterpret_cast<Halves*>(to.at(1, d)) = of_low;
  }
}

// One warp copies a row of 16-bit features, zeros behind it.
CPR_DEVICE void pad_row(const PrepareArgs& args, int64_t row, int lane) {
  uint16_t* to = args.planes + row * args.padded;
  const uint16_t* from = static_cast<const uint16_t*>(args.rows) + row * args.stride;
  for (int d = lane; d < args.padded; d += 32) to[d] = d < args.dim ? from[d] : static_cast<uint16_t>(0);
}

// All rows of an operand, packed, over the warps of `blocks` blocks. Of queries only: they are few.
CPR_DEVICE void pack_rows(const PrepareArgs& args, uint32_t block, uint32_t blocks) {
  const int lane = thread_index() & 31, planes = args.split ? 2 : 1;
#pragma unroll 1
  for (int64_t row = block * (SCORE_THREADS / 32) + thread_index() / 32;
       row < (args.count + PACKED - 1) / PACKED * PACKED; row += blocks * (SCORE_THREADS / 32)) {
    if (args.split && row < args.count) {
      split_row<false, Packed>(args, row, lane, features_from<false>(args, row, 4 * lane));
      continue;
    }
    const Packed to(args, row);
    const uint16_t* from = static_cast<const uint16_t*>(args.rows) + row * args.stride;
    for (int p = 0; p < planes; ++p)
      for (int d = lane; d < args.padded; d += 32)
        *to.at(p, d) = row < args.count && d < args.dim ? from[d] : static_cast<uint16_t>(0);
  }
}

// All rows of an operand, over the warps of `blocks` blocks.
CPR_DEVICE void prepare_rows(const PrepareArgs& args, uint32_t block, uint32_t blocks) {
  const int lane = thread_index() & 31;
  const bool whole = args.dtype == DType::float32 && args.stride % 4 == 0 && args.dim % 4 == 0 &&
                     reinterpret_cast<uintptr_t>(args.rows) % 16 == 0;
#pragma unroll 1
  for (int64_t row = block * PREPARED + thread_index() / 32 * PREPARED_AT_ONCE; row < args.count;
       row += blocks * PREPARED) {
    if (!args.split || !whole) {
#pragma unroll 1
      for (int i = 0; i < PREPARED_AT_ONCE && row + i < args.count; ++i)
        if (args.split)
          split_row<false>(args, row + i, lane, features_from<false>(args, row + i, 4 * lane));
        else
          pad_row(args, row + i, lane);
      continue;
    }
    Features first[PREPARED_AT_ONCE];
#pragma unroll
    for (int i = 0; i < PREPARED_AT_ONCE; ++i)
      first[i] = features_from<true>(args, row + i < args.count ? row + i : args.count - 1, 4 * lane);
#pragma unroll
    for (int i = 0; i < PREPARED_AT_ONCE; ++i)
      if (row + i < args.count) split_row<true>(args, row + i, lane, first[i]);
  }
}

}  // namespace cpr
