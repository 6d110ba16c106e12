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
    *total = warp_sum(of_warp);
    return warp_sum(lane < warp ? of_warp : 0u) + upto - value;
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

// Sort `size` (a power of two) keys ascending, wherever they lie. For results too long to rank by comparing
// all.
CPR_DEVICE void sort_keys(Team& team, uint64_t* keys, uint32_t size) {
  for (uint32_t run = 2; run <= size; run <<= 1)
    for (uint32_t step = run >> 1; step > 0; step >>= 1) {
      sync_block();
      for (uint32_t i = static_cast<uint32_t>(team.thread); i < size / 2;
           i += static_cast<uint32_t>(team.threads)) {
        const uint32_t a = 2 * i - (i & (step - 1)), b = a + step;
        const bool ascending = (a & run) == 0;
        const uint64_t low = keys[a], high = keys[b];
        if ((low > high) == ascending) keys[a] = high, keys[b] = low;
      }
    }
  sync_block();
}

}  // namespace cpr
