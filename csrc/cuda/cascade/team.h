// The threads of a block at work on one query: sums and running sums over the block.
#pragma once
#include "../device/device.h"

namespace cpr {

constexpr int MAX_WARPS = 32;

struct TeamMemory {
  uint32_t sums[2][5][MAX_WARPS];  // two in turn: a barrier lies between two uses of one
};

struct Team {
  TeamMemory* memory;
  int thread, threads, lane, warp, warps;
  int turn;        // of TeamMemory's two
  int collecting;  // of the selection's two counters (select.h)

  CPR_DEVICE static Team here(TeamMemory* memory) {
    const int thread = thread_index(), threads = block_threads();
    return {memory, thread, threads, thread & 31, thread >> 5, threads >> 5, 0, 0};
  }

  // Each of N values summed over the block, for every thread. One barrier.
  template <int N>
  CPR_DEVICE void sum(uint32_t (&values)[N]) {
    static_assert(N <= 5, "TeamMemory holds five sums");
    auto& mine = memory->sums[turn];
    turn ^= 1;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const uint32_t of_warp = warp_sum(values[i]);
      if (lane == 0) mine[i][warp] = of_warp;
    }
    sync_block();
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = warp_sum(lane < warps ? mine[i][lane] : 0u);
  }

  // Sum of `value` over the threads before this one, and over all. One barrier.
  CPR_DEVICE uint32_t sum_before(uint32_t value, uint32_t* total) {
    auto& mine = memory->sums[turn][0];
    turn ^= 1;
    const uint32_t upto = running(value);
    if (lane == 31) mine[warp] = upto;
    sync_block();
    const uint32_t of_warp = lane < warps ? mine[lane] : 0u;
    const uint32_t upto_warp = running(of_warp);
    *total = shuffle(upto_warp, 31);
    return shuffle(upto_warp - of_warp, warp) + upto - value;
  }

 private:
  CPR_DEVICE uint32_t running(uint32_t value) const {
#pragma unroll
    for (int step = 1; step < 32; step <<= 1) {
      const uint32_t before = shuffle_up(value, step);
      if (lane >= step) value += before;
    }
    return value;
  }
};

}  // namespace cpr
