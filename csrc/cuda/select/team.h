// The threads of a block that are at work on one query, and a sort by them.
#pragma once
#include "../../ranking.h"
#include "../device/device.h"

namespace cpr {

struct Team {
  int threads;  // the block's first ones

  CPR_DEVICE int thread() const { return thread_index(); }
  CPR_DEVICE int lane() const { return thread() & 31; }
  CPR_DEVICE int warp() const { return thread() >> 5; }
  CPR_DEVICE int warps() const { return threads >> 5; }
  CPR_DEVICE void sync() const { sync_threads(threads); }
};

// The sum of `value` over the lanes up to this one.
CPR_DEVICE uint32_t running(uint32_t value, int lane) {
#pragma unroll
  for (int step = 1; step < 32; step <<= 1) {
    const uint32_t before = shuffle_up(value, step);
    if (lane >= step) value += before;
  }
  return value;
}

// Sort `size` (a power of two) keys ascending, wherever they lie. For results too long to rank by comparing
// all.
CPR_DEVICE void sort_keys(const Team& team, uint64_t* keys, uint32_t size) {
  for (uint32_t run = 2; run <= size; run <<= 1)
    for (uint32_t step = run >> 1; step > 0; step >>= 1) {
      team.sync();
      for (uint32_t i = static_cast<uint32_t>(team.thread()); i < size / 2;
           i += static_cast<uint32_t>(team.threads)) {
        const uint32_t a = 2 * i - (i & (step - 1)), b = a + step;
        const bool ascending = (a & run) == 0;
        const uint64_t low = keys[a], high = keys[b];
        if ((low > high) == ascending) keys[a] = high, keys[b] = low;
      }
    }
  team.sync();
}

}  // namespace cpr
