// Words for pairs of 16-bit codes in a register, the first in the lower half: codes are float16 patterns of
// numbers from 0 to 1, which order as they do.
#pragma once
#include "device.h"

namespace cpr {

// Lower halves of two pairs, and upper ones; the first pair's in the lower half, or turned.
constexpr uint32_t LOWER = 0x5410u, UPPER = 0x7632u, LOWER_TURNED = 0x1054u, UPPER_TURNED = 0x3276u;

#ifdef CPR_EMULATE
inline uint32_t half_of(uint32_t pair, int half) { return half ? pair >> 16 : pair & 0xFFFFu; }
template <class Holds>
uint32_t mask_of_halves(uint32_t pair, uint32_t other, Holds holds) {
  uint32_t mask = 0;
  for (int h = 0; h < 2; ++h)
    if (holds(from_half(static_cast<uint16_t>(half_of(pair, h))),
              from_half(static_cast<uint16_t>(half_of(other, h)))))
      mask |= 0xFFFFu << 16 * h;
  return mask;
}
// 0xFFFF in each half where the code is at least another, or equal to it, which NaN never is.
inline uint32_t at_least(uint32_t pair, uint32_t least) {
  return mask_of_halves(pair, least, [](float code, float other) { return code >= other; });
}
inline uint32_t equal_to(uint32_t pair, uint32_t other) {
  return mask_of_halves(pair, other, [](float code, float same) { return code == same; });
}
// `marked` and those of BITS that the mask has.
template <uint32_t BITS>
uint32_t marked_by(uint32_t mask, uint32_t marked) {
  return (mask & BITS) | marked;
}
// Adds 1 to the bins of both codes; `lowest` is the code of the first bin, and what is lower goes to one of
// 32 words before it, a lane's each.
inline void count_pair(uint32_t pair, uint32_t* bins, uint32_t lowest) {
  for (int h = 0; h < 2; ++h) {
    const uint32_t code = half_of(pair, h);
    ++bins[code >= lowest ? static_cast<int>(code - lowest) : (thread_index() & 31) - 32];
  }
}
// Two halves of two pairs, by the selectors above.
inline uint32_t halves_of(uint32_t first, uint32_t second, uint32_t selector) {
  const uint64_t from = static_cast<uint64_t>(second) << 32 | first;
  uint32_t made = 0;
  for (int i = 0; i < 4; ++i)
    made |= static_cast<uint32_t>(from >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
  return made;
}
struct SharedPairs {
  uint32_t* at;
  explicit SharedPairs(void* place) : at(static_cast<uint32_t*>(place)) {}
};
template <uint32_t BIT>
void store_marked(uint32_t marked, SharedPairs& to, uint32_t first, uint32_t second) {
  if (!(marked & BIT)) return;
  *to.at++ = first;
  *to.at++ = second;
}
#else
CPR_DEVICE uint32_t at_least(uint32_t pair, uint32_t least) {
  uint32_t mask;
  asm("set.ge.u32.f16x2 %0, %1, %2;" : "=r"(mask) : "r"(pair), "r"(least));
  return mask;
}
CPR_DEVICE uint32_t equal_to(uint32_t pair, uint32_t other) {
  uint32_t mask;
  asm("set.eq.u32.f16x2 %0, %1, %2;" : "=r"(mask) : "r"(pair), "r"(other));
  return mask;
}
template <uint32_t BITS>
CPR_DEVICE uint32_t marked_by(uint32_t mask, uint32_t marked) {
  uint32_t all;
  asm("lop3.b32 %0, %1, %2, %3, 234;" : "=r"(all) : "r"(mask), "n"(BITS), "r"(marked));  // (a & b) | c
  return all;
}
// A product with (4, 0) or (0, 4) takes a half to its place in bytes. No predicates: they would become
// branches.
CPR_DEVICE void count_pair(uint32_t pair, uint32_t* bins, uint32_t lowest) {
  const uint32_t first = shared_address(bins), zero = first - lowest * 4,
                 lane = first - 128 + (threadIdx.x & 31) * 4;
  asm volatile(
      "{.reg .b32 %%one, %%two; dp2a.lo.u32.u32 %%one, %0, %3, %1; dp2a.hi.u32.u32 %%two, %0, %3, %1; "
      "max.s32 %%one, %%one, %2; max.s32 %%two, %%two, %2; red.shared.add.u32 [%%one], 1; "
      "red.shared.add.u32 [%%two], 1;}" ::"r"(pair),
      "r"(zero), "r"(lane), "r"(0x04000004u)
      : "memory");
}
CPR_DEVICE uint32_t halves_of(uint32_t first, uint32_t second, uint32_t selector) {
  return __byte_perm(first, second, selector);
}
// A place in shared memory where pairs of 32-bit words go one after the other.
struct SharedPairs {
  uint32_t at;
  CPR_DEVICE explicit SharedPairs(const void* place) : at(shared_address(place)) {}
};
// Where BIT of `marked` is set, two words go to a place, which moves on.
template <uint32_t BIT>
CPR_DEVICE void store_marked(uint32_t marked, SharedPairs& to, uint32_t first, uint32_t second) {
  asm volatile(
      "{.reg .pred %%stays; .reg .b32 %%one; and.b32 %%one, %1, %2; setp.ne.u32 %%stays, %%one, 0; "
      "@%%stays st.shared.v2.u32 [%0], {%3, %4}; @%%stays add.u32 %0, %0, 8;}"
      : "+r"(to.at)
      : "r"(marked), "n"(BIT), "r"(first), "r"(second)
      : "memory");
}
#endif

}  // namespace cpr
