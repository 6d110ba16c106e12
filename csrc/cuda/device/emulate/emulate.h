// What device.h's words mean on a CPU, for tests: every thread of a cluster is a fiber, run one at a time
// between barriers, in an order drawn from a seed so that a missing barrier shows. Asynchronous copies land
// when waited for, not before. Linux with glibc; slow, and never part of the installed core.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "async.h"

#define CPR_DEVICE inline
#define CPR_KERNEL(threads, blocks) inline void
#define assume(holds) static_cast<void>(holds)
#define CPR_SHARED_MEMORY(name) unsigned char* name = cpr::emulate::here().block->shared.data()

namespace cpr {
namespace emulate {

constexpr size_t STACK = 96 << 10;
constexpr size_t BORDER = 4096;  // bytes after a block's shared memory that no thread may touch
constexpr unsigned char STALE = 0xA5;

struct Copy {
  void* to;
  const void* from;
  bool real;
};

struct Block {
  uint32_t index[3];
  std::vector<unsigned char> shared;
  Barrier all, some, all_of;
  AsyncBlock async;
};

struct Slot {  // what a lane hands to the others of its warp
  unsigned char bytes[64];
};

struct Warp {
  Barrier all;
  Slot slots[2][32];
};

struct Fiber {
  Block* block;
  Warp* warp;
  int thread;
  uint32_t turn = 0;
  bool started = false, done = false;
  const Barrier* waits_for = nullptr;
  uint32_t seen = 0;
  uint32_t at_cluster = 0;  // the generation of the cluster's barrier when the thread arrived there
  bool waited_for_cluster = false;
  ucontext_t fresh;
  jmp_buf place;
  std::unique_ptr<unsigned char[]> stack;
  std::vector<std::vector<Copy>> groups{1};
  AsyncThread async;
};

struct World {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<Block> blocks;
  Barrier cluster;
  int threads = 0;
  uint32_t grid[3];
  Fiber* current = nullptr;
  jmp_buf scheduler;
  std::function<void()> body;
  AsyncWorld async;
};

inline World*& world() {
  static World* w = nullptr;
  return w;
}
inline uint32_t& seed() {
  static uint32_t value = 0;  // 0 runs threads in order
  return value;
}
inline Fiber& here() { return *world()->current; }

inline void pause() {
  if (_setjmp(here().place) == 0) _longjmp(world()->scheduler, 1);
}

inline void arrive(Barrier& barrier, uint32_t everyone) {
  Fiber& self = here();
  if (++barrier.arrived == everyone) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  self.waits_for = &barrier;
  self.seen = barrier.generation;
  pause();
}

inline void enter() {
  world()->body();
  here().done = true;
  pause();
}

// In shuffled orders half of the warps run in every third round only, or rounds would stand in for barriers.
inline bool slow(ptrdiff_t warp) {
  return (seed() * 2654435761u + static_cast<uint32_t>(warp) * 2246822519u) >> 31;
}

inline void run_cluster(World& w) {
  uint32_t state = seed() * 2654435761u + 12345u;
  size_t left = w.fibers.size();
  std::vector<uint32_t> order(w.fibers.size());
  for (uint32_t i = 0; i < order.size(); ++i) order[i] = i;
  for (uint32_t round = 0; left; ++round) {
    bool moved = false;
    if (seed())
      for (size_t i = order.size() - 1; i > 0; --i) {
        state = state * 1664525u + 1013904223u;
        std::swap(order[i], order[(state >> 8) % (i + 1)]);
      }
    for (const uint32_t at : order) {
      Fiber& f = w.fibers[at];
      if (f.done || (f.waits_for && f.waits_for->generation == f.seen)) continue;
      moved = true;
      if (seed() && round % 3 && slow(f.warp - w.warps.data())) continue;
      f.waits_for = nullptr;
      w.current = &f;
      if (_setjmp(w.scheduler) == 0) {
        if (f.started) _longjmp(f.place, 1);
        f.started = true;
        setcontext(&f.fresh);
      }
      left -= f.done;
    }
    if (!moved && !w.async.land()) fault("some threads wait at a barrier that the others never reach");
  }
  if (!w.async.in_flight.empty()) fault("a copy in bulk that nobody waited for");
  for (const Fiber& f : w.fibers) {
    const auto issued = f.block->async.issued.find(f.thread / 128);
    if (f.async.groups.size() > 1 || !f.async.groups.front().products.empty())
      fault("products of a warpgroup that nobody waited for");
    if (issued != f.block->async.issued.end() && issued->second.size() != f.async.issued)
      fault("some threads of a warpgroup multiply more often than others");
  }
}

// Code that every thread runs in place of a kernel's source.
struct Replaced {
  void (*run)(World*, const void* arguments);
  size_t stack;  // bytes a thread
};
inline std::map<std::string, Replaced>& replaced_kernels() {
  static std::map<std::string, Replaced> all;
  return all;
}

inline void launch(const uint32_t (&grid)[3], uint32_t cluster, int threads, size_t shared, size_t stack,
                   std::function<void()> body) {
  World w;
  world() = &w;
  w.threads = threads;
  std::memcpy(w.grid, grid, sizeof w.grid);
  w.body = std::move(body);
  w.async.chance = seed();
  w.blocks.resize(cluster);
  w.warps.resize(cluster * static_cast<uint32_t>(threads / 32));
  w.fibers.resize(cluster * static_cast<uint32_t>(threads));
  for (Fiber& f : w.fibers) f.stack.reset(new unsigned char[stack]);
  for (uint32_t z = 0; z < grid[2]; ++z)
    for (uint32_t y = 0; y < grid[1]; ++y)
      for (uint32_t x = 0; x < grid[0]; x += cluster) {
        w.cluster = {};
        for (Warp& warp : w.warps) warp.all = {};
        for (uint32_t c = 0; c < cluster; ++c) {
          w.blocks[c].index[0] = x + c, w.blocks[c].index[1] = y, w.blocks[c].index[2] = z;
          w.blocks[c].shared.assign(shared + BORDER, STALE);  // stale, as on a device
          w.blocks[c].all = w.blocks[c].some = w.blocks[c].all_of = {};
          w.blocks[c].async = {};
          for (int t = 0; t < threads; ++t) {
            Fiber& f = w.fibers[c * static_cast<uint32_t>(threads) + static_cast<uint32_t>(t)];
            f.block = &w.blocks[c];
            f.warp = &w.warps[(c * static_cast<uint32_t>(threads) + static_cast<uint32_t>(t)) / 32];
            f.thread = t;
            f.turn = 0;
            f.started = f.done = f.waited_for_cluster = false;
            f.waits_for = nullptr;
            f.groups.assign(1, {});
            f.async = {};
            getcontext(&f.fresh);
            f.fresh.uc_stack.ss_sp = f.stack.get();
            f.fresh.uc_stack.ss_size = stack;
            f.fresh.uc_link = nullptr;
            makecontext(&f.fresh, enter, 0);
          }
        }
        run_cluster(w);
        for (const Block& block : w.blocks)
          for (size_t i = shared; i < shared + BORDER; ++i)
            if (block.shared[i] != STALE) {
              std::fprintf(stderr,
                           "emulated kernel: a thread wrote beyond its block's %zu bytes of shared memory\n",
                           shared);
              std::abort();
            }
      }
  world() = nullptr;
}

// All lanes hand something in; each then reads whichever it wants. Two slots in turn: nobody is two exchanges
// ahead.
template <class T>
const Slot* exchange(const T& mine) {
  static_assert(sizeof(T) <= sizeof(Slot), "a lane hands over at most 64 bytes");
  Fiber& self = here();
  Slot* slots = self.warp->slots[self.turn++ & 1];
  std::memcpy(slots[self.thread & 31].bytes, &mine, sizeof(T));
  arrive(self.warp->all, 32);
  return slots;
}
template <class T>
T from_lane(const Slot* slots, int lane) {
  T value;
  std::memcpy(&value, slots[lane].bytes, sizeof(T));
  return value;
}

}  // namespace emulate

inline int thread_index() { return emulate::here().thread; }
inline int block_threads() { return emulate::world()->threads; }
inline uint32_t block_index() { return emulate::here().block->index[0]; }
inline uint32_t block_index_y() { return emulate::here().block->index[1]; }
inline uint32_t block_index_z() { return emulate::here().block->index[2]; }
inline uint32_t grid_blocks() { return emulate::world()->grid[0]; }
inline void sync_block() {
  emulate::arrive(emulate::here().block->all, static_cast<uint32_t>(block_threads()));
}
inline void sync_threads(int threads) {
  emulate::arrive(emulate::here().block->some, static_cast<uint32_t>(threads));
}
inline void sync_all_of(int threads) {
  emulate::arrive(emulate::here().block->all_of, static_cast<uint32_t>(threads));
}
inline void sync_warp() { emulate::arrive(emulate::here().warp->all, 32); }
inline void await_previous_kernel() {}  // kernels run one after the other
inline void let_next_kernel_start() {}

inline uint32_t ballot(bool yes) {
  const emulate::Slot* all = emulate::exchange(yes);
  uint32_t bits = 0;
  for (int i = 0; i < 32; ++i) bits |= static_cast<uint32_t>(emulate::from_lane<bool>(all, i)) << i;
  return bits;
}
template <class T>
T shuffle(T value, int lane) {
  return emulate::from_lane<T>(emulate::exchange(value), lane & 31);
}
template <class T>
T shuffle_up(T value, int distance) {
  const int from = (thread_index() & 31) - distance;
  const emulate::Slot* all = emulate::exchange(value);
  return from < 0 ? value : emulate::from_lane<T>(all, from);
}
template <class T>
T shuffle_xor(T value, int mask) {
  return shuffle(value, (thread_index() & 31) ^ mask);
}
inline uint32_t warp_sum(uint32_t value) {
  const emulate::Slot* all = emulate::exchange(value);
  uint32_t sum = 0;
  for (int i = 0; i < 32; ++i) sum += emulate::from_lane<uint32_t>(all, i);
  return sum;
}
inline uint32_t warp_max(uint32_t value) {
  const emulate::Slot* all = emulate::exchange(value);
  uint32_t most = 0;
  for (int i = 0; i < 32; ++i) most = std::max(most, emulate::from_lane<uint32_t>(all, i));
  return most;
}
inline uint32_t shared_add(uint32_t* place, uint32_t value) {
  const uint32_t before = *place;
  *place += value;
  return before;
}
inline void shared_or(uint32_t* place, uint32_t value) { *place |= value; }
inline int count_bits(uint32_t bits) { return __builtin_popcount(bits); }
inline int leading_zeros(uint32_t bits) { return bits ? __builtin_clz(bits) : 32; }
inline float product(float a, float b) { return a * b; }  // the tests compile with -ffp-contract=off
inline float plus(float a, float b) { return a + b; }
inline float fused(float a, float b, float c) { return std::fma(a, b, c); }
inline float saturated_fused(float a, float b, float c) {
  return std::fmin(std::fmax(std::fma(a, b, c), 0.0f), 1.0f);  // 0 of NaN
}
inline float larger(float a, float b) { return a != a || b != b ? NAN : std::fmax(a, b); }
inline float fast_exp2(float a) {
  const float result = std::exp2(a);
  return result < 0x1p-126f ? 0.0f : result;
}
inline bool unordered(float a, float b) { return a != a || b != b; }
inline void mark_above(float value, float high, uint32_t bit, uint32_t& marked, float& rest) {
  marked |= value > high ? bit : 0u;
  rest = value > high ? rest : std::fmax(rest, value);
}
inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline float from_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16, exponent = (half >> 10) & 31u,
                 fraction = half & 0x3FFu;
  if (exponent == 31) return float_of(sign | 0x7F800000u | (fraction << 13));
  if (exponent == 0) {
    const float value = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -value : value;
  }
  return float_of(sign | ((exponent + 112) << 23) | (fraction << 13));
}
struct SharedWords {
  uint32_t* at;
  explicit SharedWords(void* place) : at(static_cast<uint32_t*>(place)) {}
};
inline void store_marked(uint32_t marked, uint32_t bit, SharedWords& a, float to_a, SharedWords& b,
                         float to_b, SharedWords& c, uint32_t to_c) {
  if (!(marked & bit)) return;
  *a.at++ = bits_of(to_a);
  *b.at++ = bits_of(to_b);
  *c.at++ = to_c;
}

inline uint16_t to_half(float value) {
  const uint32_t bits = bits_of(value), sign = (bits >> 16) & 0x8000u;
  const float size = float_of(bits & 0x7FFFFFFFu);
  if (size != size) return static_cast<uint16_t>(sign | 0x7E00u);
  if (size >= 65520.0f) return static_cast<uint16_t>(sign | 0x7C00u);
  int power = static_cast<int>((bits >> 23) & 255u) - 127;
  if (power < -14) power = -14;
  const float unit = float_of(static_cast<uint32_t>(power - 10 + 127) << 23);  // of the last place, exact
  const float scaled = size / unit;
  uint32_t whole = static_cast<uint32_t>(scaled);
  const float rest = scaled - static_cast<float>(whole);
  if (rest > 0.5f || (rest == 0.5f && (whole & 1u))) ++whole;
  const uint32_t biased = static_cast<uint32_t>(power + 14)
                          << 10;  // a carry runs into the exponent, as it should
  return static_cast<uint16_t>(sign | (biased + whole));
}

inline uint32_t to_halves(float low, float high) {
  return to_half(low) | static_cast<uint32_t>(to_half(high)) << 16;
}

inline void from_halves(uint32_t bits, float& low, float& high) {
  low = from_half(static_cast<uint16_t>(bits));
  high = from_half(static_cast<uint16_t>(bits >> 16));
}

inline void copy_async(void* to, const void* from, bool real) {
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) & 15) {
    std::fprintf(stderr, "emulated kernel: an asynchronous copy is not 16-byte aligned\n");
    std::abort();
  }
  emulate::here().groups.back().push_back({to, from, real});
}
inline void copy_commit() { emulate::here().groups.emplace_back(); }
template <int PENDING>
void copy_wait() {
  auto& groups = emulate::here().groups;  // the last one is open
  while (groups.size() > static_cast<size_t>(PENDING) + 1) {
    for (const emulate::Copy& copy : groups.front())
      if (copy.real)
        std::memcpy(copy.to, copy.from, 16);
      else
        std::memset(copy.to, 0, 16);
    groups.erase(groups.begin());
  }
}

}  // namespace cpr
