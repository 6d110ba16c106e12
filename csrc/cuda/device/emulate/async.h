// What emulate.h keeps of copies in bulk, barriers in memory and products of a warpgroup until they are
// waited for. Each happens as late as it may, or at once, as the seed draws it.
#pragma once
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <vector>

namespace cpr {
namespace emulate {

[[noreturn]] inline void fault(const char* what) {
  std::fprintf(stderr, "emulated kernel: %s\n", what);
  std::abort();
}

struct Barrier {
  uint32_t arrived = 0, generation = 0;
};

struct MemoryBarrier {
  Barrier phases;
  uint32_t count = 0, pending = 0;  // arrivals a phase, and those that are missing
  int64_t bytes = 0;                // expected and not yet there
  bool visible = false;             // to copies in bulk

  void end_if_complete() {
    if (pending > 0 || bytes != 0) return;
    pending = count;
    ++phases.generation;
  }
  void arrive() {
    if (pending == 0) fault("more threads arrive at a barrier in memory than it counts");
    --pending;
    end_if_complete();
  }
};

struct BulkCopy {
  void* to;
  const void* from;
  uint32_t bytes;
  MemoryBarrier* barrier;

  void land() const {
    std::memcpy(to, from, bytes);
    barrier->bytes -= bytes;
    barrier->end_if_complete();
  }
};

// Of a in registers: the thread's two rows, 16 float16 numbers each.
struct Factor {
  std::array<uint16_t, 32> rows;
};

struct Product {
  uint64_t a, b;
  bool bfloat, accumulate;
  float* sums;                // the first accumulator, by which the others are known
  bool in_registers = false;  // is a, and b has swizzled columns?
  Factor factor{};
};

// A thread's accumulators while products of theirs are not waited for: what they will be.
struct Accumulators {
  std::array<float*, 64> at;
  std::array<float, 64> value;
  int products = 0;
};

struct ProductGroup {
  std::vector<Product> products;
  bool done = false;
};

struct AsyncThread {
  std::map<float*, Accumulators> accumulators;
  std::deque<ProductGroup> groups{1};  // the last one is open
  std::vector<uint32_t> written;       // places of AsyncBlock::hidden
  bool fenced = false;
  size_t issued = 0;
};

struct AsyncBlock {
  std::map<const void*, MemoryBarrier> barriers;
  std::map<int, std::vector<Product>> issued;  // by warpgroup: what its first thread multiplied
  std::vector<uint8_t> hidden;                 // 16 bytes each: has a thread written, and no fence shown?
};

struct AsyncWorld {
  std::vector<BulkCopy> in_flight;
  uint32_t chance = 0;  // 0: nothing happens at once

  bool at_once() {
    if (chance == 0) return false;
    chance = chance * 1664525u + 1013904223u;
    return chance >> 16 & 1;
  }
  // Lets copies land; false when there are none.
  bool land() {
    std::vector<BulkCopy> copies;
    copies.swap(in_flight);
    for (const BulkCopy& copy : copies) copy.land();
    return !copies.empty();
  }
};

}  // namespace emulate
}  // namespace cpr
