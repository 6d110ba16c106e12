// What device.h's words of the tensor cores mean on a CPU, for tests.
#pragma once
#include "emulate.h"

namespace cpr {

template <bool TRANSPOSED>
void load_matrices(uint32_t (&to)[4], const void* row) {
  const emulate::Slot* all = emulate::exchange(row);
  const int lane = thread_index() & 31;
  for (int i = 0; i < 4; ++i) {
    uint16_t pair[2];
    for (int h = 0; h < 2; ++h) {
      const int of_row = TRANSPOSED ? (lane % 4) * 2 + h : lane / 4,
                of_column = TRANSPOSED ? lane / 4 : (lane % 4) * 2 + h;
      pair[h] = static_cast<const uint16_t*>(emulate::from_lane<const void*>(all, 8 * i + of_row))[of_column];
    }
    to[i] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
  }
  sync_warp();
}

struct Fragments {
  uint32_t a[4], b[2];
};
template <bool BFLOAT>
void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const emulate::Slot* all = emulate::exchange(Fragments{{a[0], a[1], a[2], a[3]}, {b0, b1}});
  const int lane = thread_index() & 31;
  const auto value = [](uint32_t pair, int half) {
    const uint16_t bits = static_cast<uint16_t>(half ? pair >> 16 : pair);
    return BFLOAT ? float_of(static_cast<uint32_t>(bits) << 16) : from_half(bits);
  };
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + (i >= 2 ? 8 : 0), column = (lane % 4) * 2 + i % 2;
    double total = 0;
    for (int k = 0; k < 16; ++k) {
      const Fragments of_a = emulate::from_lane<Fragments>(all, row % 8 * 4 + k % 8 / 2);
      const Fragments of_b = emulate::from_lane<Fragments>(all, column * 4 + k % 8 / 2);
      total +=
          static_cast<double>(value(of_a.a[(row >= 8) + 2 * (k >= 8)], k % 2)) * value(of_b.b[k >= 8], k % 2);
    }
    sum[i] = static_cast<float>(sum[i] + total);
  }
}

}  // namespace cpr
