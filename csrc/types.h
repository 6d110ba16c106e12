// What every op's arguments are made of.
#pragma once
#include <cstdint>

namespace cpr {

enum class DType : int { float32 = 0, bfloat16 = 1, float16 = 2 };

struct View {
  const void* queries;  // [B, dim], rows query_stride elements apart
  const void* keys;     // [N, dim], rows key_stride elements apart
  int64_t query_stride;
  int64_t key_stride;
  int64_t dim;
};

}  // namespace cpr
