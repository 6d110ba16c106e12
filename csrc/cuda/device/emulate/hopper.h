// What hopper.h's words mean on a CPU, for tests; what the device leaves undefined ends the process with a
// reason.
#pragma once
#include "emulate.h"

namespace cpr {
namespace emulate {

inline MemoryBarrier& barrier_at(const uint64_t* address) {
  auto& barriers = here().block->async.barriers;
  const auto found = barriers.find(address);
  if (found == barriers.end()) fault("a barrier in memory is used before it is initialised");
  return found->second;
}

inline uint32_t offset_in_shared(const void* place) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(place) - here().block->shared.data());
}

inline const float* halves() {
  static const std::vector<float> all = [] {
    std::vector<float> made(65536);
    for (uint32_t i = 0; i < 65536; ++i) {
      const uint32_t exponent = i >> 10 & 31, fraction = i & 1023;
      double size =
          std::ldexp(exponent ? 1024 + fraction : fraction, static_cast<int>(exponent ? exponent : 1) - 25);
      if (exponent == 31) size = fraction ? NAN : INFINITY;
      made[i] = static_cast<float>(i & 0x8000 ? -size : size);
    }
    return made;
  }();
  return all.data();
}

constexpr uint64_t START_BITS = 0x3FFF;
inline void check_rows(uint64_t rows) {
  if (rows >> 62 != 1) fault("rows for the tensor cores without the 128-byte swizzle");
  if ((rows >> 32 & START_BITS) << 4 != 1024) fault("groups of 8 rows are not 1,024 bytes apart");
  if (rows >> 49 & 7 || (rows & START_BITS) << 4 & 0x380) fault("swizzled rows do not begin at 1,024 bytes");
}

// Where 16 bytes of a row are in shared memory.
inline uint32_t piece_of(uint64_t rows, int row, int piece) {
  const uint32_t at = static_cast<uint32_t>((rows & START_BITS) << 4) + static_cast<uint32_t>(row) * 128 +
                      static_cast<uint32_t>(piece) * 16;
  return at ^ (at >> 7 & 7) << 4;
}

// Are those bytes the block's, and shown to the tensor cores?
inline void check_piece(uint32_t at) {
  const Block& block = *here().block;
  if (at + 16 + BORDER > block.shared.size())
    fault("rows for the tensor cores beyond the block's shared memory");
  if (!block.async.hidden.empty() && block.async.hidden[at / 16])
    fault("tensor cores read what no fence has shown them");
}

#ifdef __GNUC__
__attribute__((optimize("O3")))
#endif
inline void
read_row(uint64_t rows, int row, bool bfloat, float (&to)[16]) {
  const unsigned char* shared = here().block->shared.data();
  for (int piece = 0; piece < 2; ++piece) {
    uint16_t bits[8];
    std::memcpy(bits, shared + piece_of(rows, row, piece), 16);
    for (int i = 0; i < 8; ++i) {
      const uint32_t wide = static_cast<uint32_t>(bits[i]) << 16;
      if (bfloat)
        std::memcpy(&to[8 * piece + i], &wide, 4);
      else
        to[8 * piece + i] = halves()[bits[i]];
    }
  }
}

// Where a feature of a row of swizzled columns is in shared memory.
inline uint32_t place_of(uint64_t columns, int row, int feature) {
  const uint32_t distance = static_cast<uint32_t>(columns >> 16 & START_BITS) << 4;
  const uint32_t at = static_cast<uint32_t>((columns & START_BITS) << 4) + static_cast<uint32_t>(row) * 128 +
                      static_cast<uint32_t>(feature / 64) * distance +
                      static_cast<uint32_t>(feature % 64) * 2;
  return at ^ (at >> 7 & 7) << 4;
}

#ifdef __GNUC__
__attribute__((optimize("O3")))
#endif
inline void
read_column(uint64_t columns, int feature, float (&to)[16]) {
  const unsigned char* shared = here().block->shared.data();
  for (int row = 0; row < 16; ++row) {
    uint16_t bits;
    std::memcpy(&bits, shared + place_of(columns, row, feature), 2);
    to[row] = halves()[bits];
  }
}

// The first row of a thread's share of a, and the first column.
inline int first_row() { return here().thread / 32 % 4 * 16 + here().thread % 32 / 4; }
inline int first_column() { return here().thread % 4 * 2; }

#ifdef __GNUC__
__attribute__((optimize("O3")))
#endif
inline void
multiply(const Product& product) {
  std::array<float, 64>& sums = here().async.accumulators.at(product.sums).value;
  float a[2][16], b[16];
  for (int half = 0; half < 2; ++half)
    if (product.in_registers)
      for (int k = 0; k < 16; ++k)
        a[half][k] = halves()[product.factor.rows[static_cast<size_t>(16 * half + k)]];
    else
      read_row(product.a, first_row() + 8 * half, product.bfloat, a[half]);
  for (int n = 0; n < 32; ++n) {
    const int column = first_column() + n / 2 * 8 + n % 2;
    if (product.in_registers)
      read_column(product.b, column, b);
    else
      read_row(product.b, column, product.bfloat, b);
    for (int half = 0; half < 2; ++half) {
      double total = 0;
      for (int k = 0; k < 16; ++k) total += static_cast<double>(a[half][k]) * b[k];
      float& sum = sums[static_cast<size_t>(n / 2 * 4 + 2 * half + n % 2)];
      sum = static_cast<float>((product.accumulate ? sum : 0.0f) + total);
    }
  }
}

inline void run_group(ProductGroup& group) {
  if (!group.done)
    for (const Product& product : group.products) multiply(product);
  group.done = true;
}

// All threads of a warpgroup must multiply the same, one after the other.
inline void check_alike(const Product& product) {
  std::vector<Product>& all = here().block->async.issued[here().thread / 128];
  const size_t number = here().async.issued++;
  if (number == all.size()) all.push_back(product);
  const Product& first = all[number];
  if (first.a != product.a || first.b != product.b || first.accumulate != product.accumulate ||
      first.in_registers != product.in_registers)
    fault("threads of a warpgroup multiply different rows");
}

inline void issue(const Product& product, const std::array<float*, 64>& at) {
  check_alike(product);
  check_rows(product.b);
  if (product.in_registers) {
    for (int row = 0; row < 16; ++row)
      for (int n = 0; n < 16; ++n) check_piece(place_of(product.b, row, n * 8));
  } else {
    check_rows(product.a);
    for (int piece = 0; piece < 2; ++piece) {
      for (int half = 0; half < 2; ++half) check_piece(piece_of(product.a, first_row() + 8 * half, piece));
      for (int n = 0; n < 32; ++n)
        check_piece(piece_of(product.b, first_column() + n / 2 * 8 + n % 2, piece));
    }
  }
  AsyncThread& own = here().async;
  auto found = own.accumulators.find(product.sums);
  if (found == own.accumulators.end()) {
    if (!own.fenced) fault("accumulators are multiplied into without wgmma.fence");
    found = own.accumulators.emplace(product.sums, Accumulators{at, {}, 0}).first;
    for (size_t i = 0; i < 64; ++i) {
      found->second.value[i] = *at[i];
      *at[i] = NAN;  // whoever reads one before waiting has this
    }
  }
  ++found->second.products;
  own.groups.back().products.push_back(product);
}

// What the lanes of a warp have of a, as by multiply_add, by the thread's rows.
inline Factor gathered(const uint32_t (&a)[4]) {
  struct Part {
    uint32_t of[4];
  };
  const Slot* all = exchange(Part{{a[0], a[1], a[2], a[3]}});
  const int quad = here().thread % 32 / 4 * 4;
  Factor made;
  for (int half = 0; half < 2; ++half)
    for (int k = 0; k < 16; ++k) {
      const uint32_t pair = from_lane<Part>(all, quad + k % 8 / 2).of[half + k / 8 * 2];
      made.rows[static_cast<size_t>(16 * half + k)] = static_cast<uint16_t>(pair >> k % 2 * 16);
    }
  return made;
}

}  // namespace emulate

inline uint32_t shared_address(const void* place) { return emulate::offset_in_shared(place); }

inline void barrier_init(uint64_t* barrier, uint32_t count) {
  if (reinterpret_cast<uintptr_t>(barrier) % 8 || count == 0)
    emulate::fault("no place or count for a barrier");
  emulate::MemoryBarrier& made = emulate::here().block->async.barriers[barrier];
  made = {};
  made.count = made.pending = count;
}
inline void barriers_are_made() {
  for (auto& barrier : emulate::here().block->async.barriers) barrier.second.visible = true;
}
inline void barrier_arrive(uint64_t* barrier) { emulate::barrier_at(barrier).arrive(); }
inline void barrier_arrive_expecting(uint64_t* barrier, uint32_t bytes) {
  emulate::MemoryBarrier& at = emulate::barrier_at(barrier);
  at.bytes += bytes;
  at.arrive();
}
inline void barrier_wait(uint64_t* barrier, uint32_t parity) {
  const emulate::Barrier& phases = emulate::barrier_at(barrier).phases;
  if (parity > 1) emulate::fault("a parity is 0 or 1");
  while ((phases.generation & 1) == parity) {
    emulate::here().waits_for = &phases;
    emulate::here().seen = phases.generation;
    emulate::pause();
  }
}

inline void copy_bulk(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
  const emulate::Block& block = *emulate::here().block;
  const uint32_t at = emulate::offset_in_shared(to);
  if (at % 16 || reinterpret_cast<uintptr_t>(from) % 16 || bytes % 16)
    emulate::fault("a copy in bulk that is not in whole 16 bytes");
  if (at + bytes + emulate::BORDER > block.shared.size())
    emulate::fault("a copy in bulk beyond the block's shared memory");
  emulate::MemoryBarrier& counts = emulate::barrier_at(barrier);
  if (!counts.visible) emulate::fault("a copy in bulk counts at a barrier that no fence has shown");
  const emulate::BulkCopy copy{to, from, bytes, &counts};
  if (emulate::world()->async.at_once())
    copy.land();
  else
    emulate::world()->async.in_flight.push_back(copy);
}

// What a thread still copies (copy_async) is not there to be shown.
inline void show_to_tensor_cores() {
  std::vector<uint8_t>& hidden = emulate::here().block->async.hidden;
  std::vector<uint32_t>& written = emulate::here().async.written;
  for (const uint32_t place : written) hidden[place] = 0;
  written.clear();
  for (const auto& group : emulate::here().groups)
    for (const emulate::Copy& copy : group) {
      const uint32_t place = emulate::offset_in_shared(copy.to) / 16;
      if (!hidden.empty()) hidden[place] = 1, written.push_back(place);
    }
}

inline void forget_loads() {}
template <int COUNT>
void take_registers() {}
template <int COUNT>
void release_registers() {}

inline void wgmma_fence() { emulate::here().async.fenced = true; }
inline void wgmma_commit() {
  emulate::AsyncThread& own = emulate::here().async;
  if (emulate::world()->async.at_once())
    for (emulate::ProductGroup& group : own.groups) emulate::run_group(group);
  own.groups.emplace_back();
}
template <int PENDING>
void wgmma_wait() {
  emulate::AsyncThread& own = emulate::here().async;
  while (own.groups.size() > static_cast<size_t>(PENDING) + 1) {
    emulate::run_group(own.groups.front());
    for (const emulate::Product& product : own.groups.front().products) {
      emulate::Accumulators& sums = own.accumulators.at(product.sums);
      if (--sums.products > 0) continue;
      for (size_t i = 0; i < 64; ++i) *sums.at[i] = sums.value[i];
      own.accumulators.erase(product.sums);
    }
    own.groups.pop_front();
  }
  own.fenced = false;
}

template <class T, int N>
void wgmma_hold(T (&)[N][4]) {}

template <bool BFLOAT>
void wgmma_multiply(float (&sum)[16][4], uint64_t a, uint64_t b, bool accumulate) {
  std::array<float*, 64> at;
  for (size_t i = 0; i < 64; ++i) at[i] = &sum[i / 4][i % 4];
  emulate::issue({a, b, BFLOAT, accumulate, at[0]}, at);
}

inline void wgmma_add_columns(float (&sum)[16][4], const uint32_t (&a)[4], uint64_t b) {
  std::array<float*, 64> at;
  for (size_t i = 0; i < 64; ++i) at[i] = &sum[i / 4][i % 4];
  emulate::issue({0, b, false, true, at[0], true, emulate::gathered(a)}, at);
}

}  // namespace cpr
