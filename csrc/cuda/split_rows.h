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
  int fill = 64;        // packed rows are filled up to a multiple of this, by zeros
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
struct alignas(16) Exponents {
  int32_t of[PREPARED_AT_ONCE];
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

// The largest magnitude: bits that order as magnitudes do, those of NaN above infinity above all.
CPR_DEVICE uint32_t largest(const Features& features, uint32_t top) {
  const float* of = features.of;
  const uint32_t bits =
      bits_of(larger(larger(fabsf(of[0]), fabsf(of[1])), larger(fabsf(of[2]), fabsf(of[3]))));
  return bits > top ? bits : top;
}

// Magnitudes up to `top` are below 2^exponent; -126 of zero and of subnormal ones.
CPR_DEVICE int exponent_of(uint32_t top) { return static_cast<int>(top >> 23) - 126; }

constexpr uint32_t SCALABLE = 0x7E800000u;  // magnitudes below it are scaled by one normal number

// The power of two by which a row's features are divided, from the largest of them: in two steps, of which
// the second is 1 but for the two largest exponents. Rows of infinities or NaN become zeros.
struct RowScale {
  float scale, rest;
  int stored;  // the exponent, or ODD
  bool odd;
  CPR_DEVICE explicit RowScale(uint32_t top) : odd(top >= 0x7F800000u) {
    const int exponent = exponent_of(top), step = exponent < 126 ? exponent : 126;
    stored = odd ? ODD : exponent;
    scale = odd ? 0.0f : power_of_two(-step);
    rest = power_of_two(step - exponent);
  }
  CPR_DEVICE Features fitting(const Features& features) const {
    Features made;
#pragma unroll
    for (int i = 0; i < 4; ++i) made.of[i] = odd ? 0.0f : features.of[i] * scale * rest;
    return made;
  }
};

// Four features below 1 to both planes, or to the high one only.
CPR_DEVICE void store_split(const Features& features, float low_scale, uint16_t* high, uint16_t* low,
                            bool both = true) {
  Halves of_high, of_low;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float a = features.of[2 * i], b = features.of[2 * i + 1];
    of_high.of[i] = to_halves(a, b);
    float high_a, high_b;
    from_halves(of_high.of[i], high_a, high_b);
    of_low.of[i] = to_halves((a - high_a) * low_scale, (b - high_b) * low_scale);
  }
  *reinterpret_cast<Halves*>(high) = of_high;
  if (both) *reinterpret_cast<Halves*>(low) = of_low;
}

// Where feature d of a row goes, row by row.
struct InRows {
  static constexpr bool LOW_OF_16_BITS = true;  // the low plane of 16-bit features is read too
  uint16_t *high, *low;
  int padded;
  CPR_DEVICE InRows(const PrepareArgs& args, int64_t row)
      : high(args.planes + row * args.padded), low(high + args.count * args.padded), padded(args.padded) {}
  CPR_DEVICE uint16_t* at(int plane, int d) const { return (plane ? low : high) + d; }
  CPR_DEVICE void next() { high += padded, low += padded; }
};

// The same in blocks of 64 rows by 64 features, [rows / 64][padded / 64][planes][64, 64], zeros where there
// is nothing. A row of a block is as the tensor cores want it in shared memory (device/hopper.h).
constexpr int PACKED = 64;
struct Packed {
  static constexpr bool LOW_OF_16_BITS = false;
  uint16_t* first;  // of the row, in its first block
  int swizzle, planes;
  CPR_DEVICE Packed(const PrepareArgs& args, int64_t at) : planes(args.split ? 2 : 1) {
    const uint32_t row = static_cast<uint32_t>(at);
    const int64_t block = static_cast<int64_t>(row / PACKED) * (args.padded / PACKED * planes);
    first = args.planes + (block * PACKED + row % PACKED) * PACKED;
    swizzle = static_cast<int>(row & 7);
  }
  CPR_DEVICE void next() { first += PACKED, ++swizzle; }  // of the same eight rows
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
  const RowScale scale(warp_max(top));
  if (lane == 0) args.exponents[row] = scale.stored;
  const Place to(args, row);
#pragma unroll 1
  for (int d = 4 * lane; d < args.padded; d += 128) {
    const Features features = d < 128 ? first : features_from<WHOLE>(args, row, d);
    store_split(scale.fitting(features), args.low_scale, to.at(0, d), to.at(1, d));
  }
}

// One warp copies a row of 16-bit features, zeros behind it.
CPR_DEVICE void pad_row(const PrepareArgs& args, int64_t row, int lane) {
  uint16_t* to = args.planes + row * args.padded;
  const uint16_t* from = static_cast<const uint16_t*>(args.rows) + row * args.stride;
  for (int d = lane; d < args.padded; d += 32) to[d] = d < args.dim ? from[d] : static_cast<uint16_t>(0);
}

// Rows that split_four_rows takes: of at most 128 features, padding counted, four of which are aligned.
CPR_DEVICE bool are_short(const PrepareArgs& args, bool aligned) {
  return args.split && aligned && args.dim > 0 && args.padded <= 128;
}

// Four rows' features, of which a lane has four each; their loads are in flight together.
template <bool WIDE>
CPR_DEVICE void load_four_rows(const PrepareArgs& args, int64_t at, Features (&features)[PREPARED_AT_ONCE]) {
  if constexpr (WIDE) {
    const float* from = static_cast<const float*>(args.rows) + at;
#pragma unroll
    for (int i = 0; i < PREPARED_AT_ONCE; ++i, from += args.stride)
      features[i] = *reinterpret_cast<const Features*>(from);
  } else {
    const uint16_t* from = static_cast<const uint16_t*>(args.rows) + at;
    Halves halves[PREPARED_AT_ONCE];
#pragma unroll
    for (int i = 0; i < PREPARED_AT_ONCE; ++i, from += args.stride)
      halves[i] = *reinterpret_cast<const Halves*>(from);
#pragma unroll
    for (int i = 0; i < PREPARED_AT_ONCE; ++i)
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        const uint32_t bits = halves[i].of[pair];
        float &first = features[i].of[2 * pair], &second = features[i].of[2 * pair + 1];
        if (args.dtype == DType::bfloat16)
          first = float_of(bits << 16), second = float_of(bits & 0xFFFF0000u);
        else
          from_halves(bits, first, second);
      }
  }
}

// A warp splits four rows at a time: what is the same of all is formed once. False: one of them needs two
// scales. WIDE: of float32.
template <class Place, bool WIDE>
CPR_DEVICE bool split_four_rows_of(const PrepareArgs& args, int64_t row, int lane) {
  const bool real = 4 * lane < args.dim;  // else zeros, where there is a place
  Features features[PREPARED_AT_ONCE];
  load_four_rows<WIDE>(args, row * args.stride + (real ? 4 * lane : 0), features);
  uint32_t tops[PREPARED_AT_ONCE], top = 0;
#pragma unroll
  for (int i = 0; i < PREPARED_AT_ONCE; ++i) {
    tops[i] = warp_max(largest(features[i], 0));
    top = tops[i] > top ? tops[i] : top;
  }
  if (top >= SCALABLE) return false;
  if (4 * lane < args.padded) {
    Place to(args, row);
#pragma unroll
    for (int i = 0; i < PREPARED_AT_ONCE; ++i, to.next()) {
      const float scale = real ? power_of_two(-exponent_of(tops[i])) : 0.0f;
#pragma unroll
      for (int f = 0; f < 4; ++f) features[i].of[f] *= scale;
      store_split(features[i], args.low_scale, to.at(0, 4 * lane), to.at(1, 4 * lane),
                  WIDE || Place::LOW_OF_16_BITS);
    }
  }
  if (lane == 0) {
    Exponents exponents;
#pragma unroll
    for (int i = 0; i < PREPARED_AT_ONCE; ++i) exponents.of[i] = exponent_of(tops[i]);
    *reinterpret_cast<Exponents*>(args.exponents + row) = exponents;
  }
  return true;
}

template <class Place>
CPR_DEVICE bool split_four_rows(const PrepareArgs& args, int64_t row, int lane) {
  return args.dtype == DType::float32 ? split_four_rows_of<Place, true>(args, row, lane)
                                      : split_four_rows_of<Place, false>(args, row, lane);
}

// Do rows begin and end where four features are aligned?
CPR_DEVICE bool are_aligned(const PrepareArgs& args) {
  const int64_t size = args.dtype == DType::float32 ? 4 : 2;
  const uint64_t places = reinterpret_cast<uintptr_t>(args.rows) | static_cast<uint64_t>(args.stride * size) |
                          static_cast<uint64_t>(args.dim * size);
  return places % static_cast<uint64_t>(4 * size) == 0;
}

// A row of any kind, packed, or zeros behind the last.
CPR_DEVICE void pack_row(const PrepareArgs& args, int64_t row, int lane) {
  if (args.split && row < args.count)
    return split_row<false, Packed>(args, row, lane, features_from<false>(args, row, 4 * lane));
  const Packed to(args, row);
  const uint16_t* from = static_cast<const uint16_t*>(args.rows) + row * args.stride;
  for (int p = 0; p < (args.split ? 2 : 1); ++p)
    for (int d = lane; d < args.padded; d += 32)
      *to.at(p, d) = row < args.count && d < args.dim ? from[d] : static_cast<uint16_t>(0);
}

// Rows of an operand packed, over the warps of `blocks` blocks, and zeros behind them.
CPR_DEVICE void pack_rows(const PrepareArgs& args, uint32_t block, uint32_t blocks) {
  const int lane = thread_index() & 31;
  const bool at_once = are_short(args, are_aligned(args));
  const int64_t end = (args.count + args.fill - 1) / args.fill * args.fill;
#pragma unroll 1
  for (int64_t row = block * PREPARED + thread_index() / 32 * PREPARED_AT_ONCE; row < end;
       row += blocks * PREPARED) {
    if (at_once && row + PREPARED_AT_ONCE <= args.count && split_four_rows<Packed>(args, row, lane)) continue;
#pragma unroll 1
    for (int i = 0; i < PREPARED_AT_ONCE && row + i < end; ++i) pack_row(args, row + i, lane);
  }
}

// All rows of an operand, over the warps of `blocks` blocks.
CPR_DEVICE void prepare_rows(const PrepareArgs& args, uint32_t block, uint32_t blocks) {
  if (block * PREPARED >= args.count) return;  // as soon as that is known: other operands may have more rows
  const int lane = thread_index() & 31;
  const bool aligned = are_aligned(args), at_once = are_short(args, aligned);
  const bool whole = aligned && args.dtype == DType::float32;
#pragma unroll 1
  for (int64_t row = block * PREPARED + thread_index() / 32 * PREPARED_AT_ONCE; row < args.count;
       row += blocks * PREPARED) {
    if (at_once && row + PREPARED_AT_ONCE <= args.count && split_four_rows<InRows>(args, row, lane)) continue;
    if (!args.split || !whole) {
#pragma unroll 1
      for (int i = 0; i < PREPARED_AT_ONCE && row + i < args.count; ++i)
        if (args.split)
          split_row<false>(args, row + i, lane, features_from<false>(args, row + i, 4 * lane));
        else
          pad_row(args, row + i, lane);
      continue;
    }
#pragma unroll 1
    for (int64_t pair = row; pair < row + PREPARED_AT_ONCE && pair < args.count; pair += 2) {
      Features first[2];  // their loads are in flight together
#pragma unroll
      for (int i = 0; i < 2; ++i)
        first[i] = features_from<true>(args, pair + i < args.count ? pair + i : pair, 4 * lane);
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (pair + i < args.count) split_row<true>(args, pair + i, lane, first[i]);
    }
  }
}

}  // namespace cpr
