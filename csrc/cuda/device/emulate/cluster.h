// What device.h's words of a cluster mean on a CPU, for tests.
#pragma once
#include "emulate.h"

namespace cpr {
namespace emulate {

// Where a block of the cluster has its `bytes` bytes at an offset of its shared memory. No thread touches
// another block's before it has waited at the cluster's barrier once: the block might not be there yet.
inline unsigned char* of_block(uint32_t block, size_t offset, size_t bytes) {
  World& w = *world();
  if (block >= w.blocks.size()) fault("shared memory of a block that the cluster does not have");
  if (offset + bytes + BORDER > w.blocks[block].shared.size()) fault("beyond another block's shared memory");
  if (!here().waited_for_cluster)
    fault("another block's shared memory before all blocks are known to be there");
  return w.blocks[block].shared.data() + offset;
}

}  // namespace emulate

inline void arrive_at_cluster() {
  sync_warp();
  emulate::Barrier& cluster = emulate::world()->cluster;
  emulate::here().at_cluster = cluster.generation;
  if (++cluster.arrived < emulate::world()->fibers.size()) return;
  cluster.arrived = 0;
  ++cluster.generation;
}
inline void wait_for_cluster() {
  sync_warp();
  const emulate::Barrier& cluster = emulate::world()->cluster;
  emulate::here().waited_for_cluster = true;
  if (cluster.generation != emulate::here().at_cluster) return;
  emulate::here().waits_for = &cluster;
  emulate::here().seen = cluster.generation;
  emulate::pause();
}

struct FloatsOfBlock {
  uint32_t block;
  size_t offset;
  FloatsOfBlock(const float* place, uint32_t block)
      : block(block),
        offset(static_cast<size_t>(reinterpret_cast<const unsigned char*>(place) -
                                   emulate::here().block->shared.data())) {}
  template <int AFTER>
  void store(float value) const {
    std::memcpy(emulate::of_block(block, offset + 4 * AFTER, 4), &value, 4);
  }
};

template <int TO, int FROM>
void copy_async_at(void* to, const void* from) {
  copy_async(static_cast<unsigned char*>(to) + TO, static_cast<const unsigned char*>(from) + FROM, true);
}

template <uint16_t FACTOR>
uint32_t scaled_halves(uint32_t pair) {
  float low, high;
  from_halves(pair, low, high);
  return to_halves(low * from_half(FACTOR), high * from_half(FACTOR));
}

inline float larger_magnitude(float a, float b) {
  const float size = std::fmax(std::fabs(a), std::fabs(b));
  return a != a || b != b ? NAN : std::signbit(a) != std::signbit(b) ? -size : size;
}

}  // namespace cpr
