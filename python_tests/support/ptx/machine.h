// What a kernel translated from PTX runs on: a thread's view of memory, checks of every access, and counts. A
// warp is said to execute a basic block as often as the lane that entered it most often; a lane's accesses
// belong together with those of the other lanes at the same place, for the same time.
#pragma once
#define CPR_EMULATE
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#pragma GCC push_options
#pragma GCC optimize("O2")
#include "device/hopper.h"
#pragma GCC pop_options

namespace ptx {

using Bits = uint64_t;  // what any register holds

struct Cost {  // of one pass through a basic block
  uint32_t instructions, products, matrices, barriers;
};

// Sums over all launches since they were last taken; build.py reads them.
struct Tally {
  uint64_t instructions, products, matrices, barriers;  // executed by warps
  uint64_t shared_bytes, global_bytes;
  uint64_t wavefronts, least_wavefronts;  // of shared memory: 128 bytes at a time, and were there no conflict
  uint64_t sectors;                       // of 32 bytes of global memory
  uint64_t warps;
};
inline Tally tally{};
inline bool watching = false;  // are accesses kept, to count wavefronts and sectors? It takes long

struct Access {
  uint64_t address;
  uint32_t bytes;
  bool shared;
};

struct Warp {
  int ended = 0;
  std::vector<uint32_t> entered;
  std::map<std::pair<uint32_t, uint32_t>, std::vector<Access>> accesses;  // by place and time
};
inline std::unordered_map<const void*, Warp>& warps() {
  static std::unordered_map<const void*, Warp> all;
  return all;
}

[[noreturn]] inline void fault(const char* what) {
  std::fprintf(stderr, "PTX fault: %s (thread %d of block %u)\n", what, cpr::thread_index(),
               cpr::block_index());
  std::abort();
}

// A warp's access to shared memory takes as many passes as there are different words in the bank that has
// most of them; 16-byte accesses go by quarters of a warp, 8-byte ones by halves.
inline void count_shared(const std::vector<Access>& lanes) {
  const size_t group = 128 / std::max<size_t>(lanes[0].bytes, 4);
  for (size_t first = 0; first < lanes.size(); first += group) {
    std::array<std::set<uint64_t>, 32> words;
    std::set<uint64_t> all;
    for (size_t i = first; i < std::min(first + group, lanes.size()); ++i)
      for (uint64_t word = lanes[i].address / 4; word * 4 < lanes[i].address + lanes[i].bytes; ++word)
        words[word % 32].insert(word), all.insert(word);
    size_t most = 0;
    for (const auto& bank : words) most = std::max(most, bank.size());
    tally.wavefronts += most;
    tally.least_wavefronts += (all.size() + 31) / 32;
  }
}

inline void count_accesses(const std::vector<Access>& lanes) {
  if (lanes[0].shared) return count_shared(lanes);
  std::set<uint64_t> sectors;
  for (const Access& lane : lanes)
    for (uint64_t sector = lane.address / 32; sector * 32 < lane.address + lane.bytes; ++sector)
      sectors.insert(sector);
  tally.sectors += sectors.size();
}

struct Thread {
  Bits parameters;
  unsigned char* shared;
  uint64_t shared_bytes;
  Bits sink = 0;
  std::vector<uint32_t> counts;  // [blocks]
  std::vector<uint32_t> times;   // [places]
  uint32_t* entered;
  bool by_wgmma;                                         // does the kernel have products of a warpgroup?
  std::map<float*, std::array<Bits*, 64>> accumulators;  // in flight, by the first
  std::vector<std::pair<Bits*, Bits>> factors;           // in registers and in flight, and what they were

  Thread(const void* arguments, size_t blocks, size_t places, bool by_wgmma)
      : parameters(reinterpret_cast<Bits>(arguments)),
        counts(blocks),
        times(places),
        entered(counts.data()),
        by_wgmma(by_wgmma) {
    cpr::emulate::Block& block = *cpr::emulate::here().block;
    shared = block.shared.data();
    shared_bytes = block.shared.size() - cpr::emulate::BORDER;
  }

  Warp& warp() const { return warps()[cpr::emulate::here().warp]; }

  void note(uint32_t place, uint64_t address, uint32_t bytes, bool in_shared) {
    if (watching) warp().accesses[{place, times[place]++}].push_back({address, bytes, in_shared});
    (in_shared ? tally.shared_bytes : tally.global_bytes) += bytes;
  }

  // The host's address of `bytes` bytes at an offset in shared memory.
  uint64_t in_shared(uint32_t place, Bits offset, uint32_t bytes) {
    if (offset % bytes) fault("a misaligned access to shared memory");
    if (offset + bytes > shared_bytes) fault("an access beyond the block's shared memory");
    note(place, offset, bytes, true);
    return reinterpret_cast<uint64_t>(shared) + offset;
  }
  // The tensor cores do not see what was written until a fence shows it.
  void wrote(Bits offset, uint32_t bytes) const {
    if (!by_wgmma) return;
    cpr::emulate::Fiber& here = cpr::emulate::here();
    std::vector<uint8_t>& hidden = here.block->async.hidden;
    hidden.resize(here.block->shared.size() / 16);
    for (Bits at = offset / 16; at * 16 < offset + bytes; ++at) {
      hidden[at] = 1;
      here.async.written.push_back(static_cast<uint32_t>(at));
    }
  }
  // The same of a global address, or of a generic one, which may be in shared memory.
  uint64_t anywhere(uint32_t place, Bits address, uint32_t bytes) {
    const uint64_t start = reinterpret_cast<uint64_t>(shared);
    if (address >= start && address < start + shared_bytes) return in_shared(place, address - start, bytes);
    if (address % bytes) fault("a misaligned access to global memory");
    if (address < 65536) fault("an offset in shared memory, or null, used as a global address");
    note(place, address, bytes, false);
    return address;
  }

  // The last lane of a warp to end adds up what the warp did.
  void end(const Cost* costs) {
    Warp& mine = warp();
    if (mine.entered.empty()) mine.entered.resize(counts.size());
    for (size_t i = 0; i < counts.size(); ++i) mine.entered[i] = std::max(mine.entered[i], counts[i]);
    if (++mine.ended < 32) return;
    for (size_t i = 0; i < counts.size(); ++i) {
      tally.instructions += uint64_t{mine.entered[i]} * costs[i].instructions;
      tally.products += uint64_t{mine.entered[i]} * costs[i].products;
      tally.matrices += uint64_t{mine.entered[i]} * costs[i].matrices;
      tally.barriers += uint64_t{mine.entered[i]} * costs[i].barriers;
    }
    for (const auto& access : mine.accesses) count_accesses(access.second);
    tally.warps += 1;
    warps().erase(cpr::emulate::here().warp);
  }
};

}  // namespace ptx

// What Python and the emulation call of a translated kernel.
#define CPR_PTX_VISIBLE extern "C" __attribute__((visibility("default")))
#define CPR_PTX_KERNEL(body, costs, blocks, places, by_wgmma)                   \
  CPR_PTX_VISIBLE void run(cpr::emulate::World* world, const void* arguments) { \
    cpr::emulate::world() = world;                                              \
    ptx::Thread thread(arguments, blocks, places, by_wgmma);                    \
    body(thread);                                                               \
    thread.end(costs);                                                          \
  }                                                                             \
  CPR_PTX_VISIBLE void watch(bool yes) { ptx::watching = yes; }                 \
  CPR_PTX_VISIBLE ptx::Tally take_tally() { return std::exchange(ptx::tally, ptx::Tally{}); }
