// What PTX instructions mean, one function each, named after them; types are template arguments. Registers
// hold 64 bits, of which an instruction reads as many as its type has.
#pragma once
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "machine.h"

// A kernel's body is compiled without optimization, which is soon done; what it calls, with.
#pragma GCC push_options
#pragma GCC optimize("O2")

namespace ptx {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;
using b8 = u8;
using b16 = u16;
using b32 = u32;
using b64 = u64;
using f32 = float;
using pred = bool;
struct f16 {};
struct f16x2 {};
struct bf16 {};

// What the upper half of an accumulator's register holds while a product may still change it.
constexpr u64 IN_FLIGHT = 0xACC0ACC0u;

template <class T>
T get(Bits bits) {
  if (sizeof(T) == 4 && bits >> 32 == IN_FLIGHT) fault("an accumulator is read before wgmma.wait_group");
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
template <class T>
Bits put(T value) {
  if constexpr (std::is_same_v<T, float>) return cpr::bits_of(value);
  return static_cast<Bits>(static_cast<int64_t>(value));  // signs spread, as into a wider register
}
template <>
inline bool get<bool>(Bits bits) {
  return bits != 0;
}

// Arithmetic and logic of two operands.
#define TWO(name, expression)                           \
  template <class T>                                    \
  void op_##name(Bits& to, Bits left, Bits right) {     \
    const T a = get<T>(left), b = get<T>(right);        \
    to = put<T>(static_cast<T>(expression));            \
  }
TWO(add, a + b)
TWO(add_rn, a + b)
TWO(sub, a - b)
TWO(mul, a* b)
TWO(mul_rn, a* b)
TWO(mul_lo, a* b)
TWO(div, a / b)
TWO(div_rn, a / b)
TWO(rem, a % b)
TWO(and, a& b)
TWO(or, a | b)
TWO(xor, a ^ b)
#undef TWO
template <>
inline void op_mul<f16x2>(Bits& to, Bits a, Bits b) {
  to = 0;
  for (u32 shift = 0; shift < 32; shift += 16)
    to |= static_cast<Bits>(cpr::to_half(cpr::from_half(get<u16>(a >> shift)) * cpr::from_half(get<u16>(b >> shift))))
          << shift;
}
template <class T>
void op_min(Bits& to, Bits a, Bits b) {
  if constexpr (std::is_same_v<T, float>)
    to = put(std::fmin(get<T>(a), get<T>(b)));
  else
    to = put(std::min(get<T>(a), get<T>(b)));
}
template <class T>
void op_max(Bits& to, Bits a, Bits b) {
  if constexpr (std::is_same_v<T, float>)
    to = put(std::fmax(get<T>(a), get<T>(b)));
  else
    to = put(std::max(get<T>(a), get<T>(b)));
}
template <class T>
void op_max_NaN(Bits& to, Bits left, Bits right) {
  const T a = get<T>(left), b = get<T>(right);
  to = a != a || b != b ? Bits{0x7FFFFFFF} : put(std::fmax(a, b));
}
template <class T>
void op_max_NaN_xorsign_abs(Bits& to, Bits a, Bits b) {
  to = put(cpr::larger_magnitude(get<T>(a), get<T>(b)));
}
template <class T>
using Wide = std::conditional_t<std::is_signed_v<T>, s64, u64>;
template <class T>
void op_mul_wide(Bits& to, Bits a, Bits b) {
  to = static_cast<Bits>(static_cast<Wide<T>>(get<T>(a)) * static_cast<Wide<T>>(get<T>(b)));
}
template <class T>
void op_mul_hi(Bits& to, Bits a, Bits b) {
  using Wider = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
  to = put(static_cast<T>(static_cast<Wider>(get<T>(a)) * static_cast<Wider>(get<T>(b)) >> 8 * sizeof(T)));
}
template <class T>
void op_mad_lo(Bits& to, Bits a, Bits b, Bits c) {
  to = put(static_cast<T>(get<T>(a) * get<T>(b) + get<T>(c)));
}
template <class T>
void op_mad_wide(Bits& to, Bits a, Bits b, Bits c) {
  op_mul_wide<T>(a, a, b);
  to = a + c;
}
template <class T>
void op_neg(Bits& to, Bits a) {
  to = put(static_cast<T>(-get<T>(a)));
}
template <class T>
void op_abs(Bits& to, Bits a) {
  to = put(static_cast<T>(std::abs(get<T>(a))));
}
template <class T>
void op_not(Bits& to, Bits a) {
  if constexpr (std::is_same_v<T, bool>)
    to = !a;
  else
    to = put(static_cast<T>(~get<T>(a)));
}
template <class T>
void op_shl(Bits& to, Bits a, Bits by) {
  to = get<u32>(by) >= 8 * sizeof(T) ? 0 : put(static_cast<T>(get<T>(a) << get<u32>(by)));
}
template <class T>
void op_shr(Bits& to, Bits a, Bits by) {
  const u32 most = 8 * sizeof(T) - 1, distance = get<u32>(by);
  if (!std::is_signed_v<T> && distance > most)
    to = 0;
  else
    to = put(static_cast<T>(get<T>(a) >> std::min(distance, most)));
}
inline void shift_funnel(Bits& to, Bits low, Bits high, u32 left) {
  to = static_cast<u32>(((high << 32 | get<u32>(low)) << left) >> 32);
}
template <class T>
void op_shf_l_wrap(Bits& to, Bits low, Bits high, Bits by) {
  shift_funnel(to, low, high, get<u32>(by) & 31);
}
template <class T>
void op_shf_r_wrap(Bits& to, Bits low, Bits high, Bits by) {
  to = static_cast<u32>((high << 32 | get<u32>(low)) >> (get<u32>(by) & 31));
}
template <class T>
void op_bfi(Bits& to, Bits field, Bits base, Bits at, Bits length) {
  const u32 bits = 8 * sizeof(T), first = get<u8>(at), count = std::min<u32>(get<u8>(length), bits);
  const u64 mask = count == 0 || first >= bits ? 0 : (count == 64 ? ~u64{0} : (u64{1} << count) - 1) << first;
  to = put(static_cast<T>((base & ~mask) | (first < 64 ? field << first & mask : 0)));
}
template <class T>
void op_bfe(Bits& to, Bits a, Bits at, Bits length) {
  static_assert(std::is_unsigned_v<T>, "signed fields have no meaning here yet");
  const u32 first = get<u8>(at), count = get<u8>(length);
  const u64 value = first < 64 ? static_cast<u64>(get<T>(a)) >> first : 0;
  to = count < 64 ? value & ((u64{1} << count) - 1) : value;
}
template <class T>
void op_prmt(Bits& to, Bits low, Bits high, Bits which) {
  const u64 from = high << 32 | get<u32>(low);
  u32 made = 0;
  for (int i = 0; i < 4; ++i) {
    const u32 choice = get<u32>(which) >> 4 * i & 15;
    u32 byte = from >> 8 * (choice & 7) & 255;
    if (choice & 8) byte = byte & 128 ? 255 : 0;
    made |= byte << 8 * i;
  }
  to = made;
}
template <class T>
void op_lop3(Bits& to, Bits left, Bits middle, Bits right, Bits table) {
  const T a = get<T>(left), b = get<T>(middle), c = get<T>(right);
  T made = 0;
  for (u32 row = 0; row < 8; ++row)
    if (get<u32>(table) >> row & 1u) made |= (row & 4 ? a : ~a) & (row & 2 ? b : ~b) & (row & 1 ? c : ~c);
  to = put(made);
}
// A product of one half of `a`'s two, each with a byte of b's lower or upper half.
template <class A, class B>
void op_dp2a_lo(Bits& to, Bits a, Bits b, Bits c) {
  static_assert(std::is_same_v<A, u32> && std::is_same_v<B, u32>, "signed products have no meaning here yet");
  to = static_cast<u32>(get<u32>(c) + get<u16>(a) * get<u8>(b) + get<u16>(a >> 16) * get<u8>(b >> 8));
}
template <class A, class B>
void op_dp2a_hi(Bits& to, Bits a, Bits b, Bits c) {
  op_dp2a_lo<A, B>(to, a, b >> 16, c);
}
template <class T>
void op_popc(Bits& to, Bits a) {
  to = static_cast<Bits>(__builtin_popcountll(static_cast<u64>(get<T>(a))));
}
template <class T>
void op_clz(Bits& to, Bits a) {
  to = get<T>(a) ? static_cast<Bits>(__builtin_clzll(get<T>(a))) - (64 - 8 * sizeof(T)) : 8 * sizeof(T);
}
template <class T>
void op_brev(Bits& to, Bits a) {
  u32 made = 0;
  for (u32 i = 0; i < 32; ++i) made |= (get<u32>(a) >> i & 1u) << (31 - i);
  to = made;
}

// float32.
template <class T>
void op_fma_rn(Bits& to, Bits a, Bits b, Bits c) {
  to = put(std::fma(get<T>(a), get<T>(b), get<T>(c)));
}
template <class T>
void op_fma_rn_sat(Bits& to, Bits a, Bits b, Bits c) {
  const float value = std::fma(get<T>(a), get<T>(b), get<T>(c));
  to = put(value > 0.0f ? std::min(value, 1.0f) : 0.0f);
}
template <class T>
void op_fma_rm(Bits& to, Bits a, Bits b, Bits c) {
  const double exact = static_cast<double>(get<T>(a)) * get<T>(b) + static_cast<double>(get<T>(c));
  const float near = static_cast<float>(exact);
  to = put(static_cast<double>(near) > exact ? std::nextafter(near, -INFINITY) : near);
}
#define ONE(name, expression)         \
  template <class T>                  \
  void op_##name(Bits& to, Bits from) { \
    const T a = get<T>(from);         \
    to = put<T>(expression);          \
  }
ONE(ex2_approx_ftz, std::exp2(a))
ONE(lg2_approx_ftz, std::log2(a))
ONE(rcp_rn, 1.0f / a)
ONE(sqrt_rn, std::sqrt(a))
#undef ONE

// Comparisons: `u` at the end of a name is true of NaN too.
#define COMPARE(name, expression)                         \
  template <class T>                                      \
  void op_setp_##name(Bits& to, Bits left, Bits right) {  \
    const T a = get<T>(left), b = get<T>(right);          \
    to = expression;                                      \
  }                                                       \
  template <class T>                                      \
  void op_setp_##name##_and(Bits& to, Bits left, Bits right, Bits with) { \
    op_setp_##name<T>(to, left, right);                   \
    to = to && with;                                      \
  }                                                       \
  template <class T>                                      \
  void op_setp_##name##_or(Bits& to, Bits left, Bits right, Bits with) { \
    op_setp_##name<T>(to, left, right);                   \
    to = to || with;                                      \
  }
COMPARE(eq, a == b)
COMPARE(ne, a < b || a > b)
COMPARE(lt, a < b)
COMPARE(le, a <= b)
COMPARE(gt, a > b)
COMPARE(ge, a >= b)
COMPARE(equ, !(a < b || a > b))
COMPARE(neu, !(a == b))
COMPARE(ltu, !(a >= b))
COMPARE(leu, !(a > b))
COMPARE(gtu, !(a <= b))
COMPARE(geu, !(a < b))
COMPARE(nan, a != a || b != b)
COMPARE(num, a == a && b == b)
#undef COMPARE
// Two halves at once: all bits of a half are set where it is true.
template <class To, class From, class Holds>
void set_halves(Bits& to, Bits a, Bits b, Holds holds) {
  static_assert(std::is_same_v<To, u32> && std::is_same_v<From, f16x2>, "masks of two halves");
  to = 0;
  for (u32 shift = 0; shift < 32; shift += 16)
    if (holds(cpr::from_half(get<u16>(a >> shift)), cpr::from_half(get<u16>(b >> shift)))) to |= Bits{0xFFFF} << shift;
}
template <class To, class From>
void op_set_ge(Bits& to, Bits a, Bits b) {
  set_halves<To, From>(to, a, b, [](float x, float y) { return x >= y; });
}
template <class To, class From>
void op_set_eq(Bits& to, Bits a, Bits b) {
  set_halves<To, From>(to, a, b, [](float x, float y) { return x == y; });
}
template <class T>
void op_selp(Bits& to, Bits a, Bits b, Bits choose) {
  to = put(get<T>(choose ? a : b));
}

// Moves and conversions.
template <class T>
void op_mov(Bits& to, Bits a) {
  to = put(get<T>(a));
}
template <class T, class... Parts>
void op_pack(Bits& to, Parts... parts) {
  constexpr size_t EACH = 8 * sizeof(T) / sizeof...(parts);
  const Bits all[] = {parts...};
  Bits made = 0;
  for (size_t i = 0; i < sizeof...(parts); ++i) made |= (all[i] & ((Bits{1} << EACH) - 1)) << EACH * i;
  to = made;
}
template <class T, class... Parts>
void op_unpack(Bits from, Parts&... parts) {
  constexpr size_t EACH = 8 * sizeof(T) / sizeof...(parts);
  size_t i = 0;
  ((parts = from >> EACH * i++ & ((Bits{1} << EACH) - 1)), ...);
}
template <class To, class From>
void op_cvt(Bits& to, Bits from) {
  if constexpr (std::is_same_v<From, f16>)
    to = put(cpr::from_half(get<u16>(from)));
  else
    to = put(static_cast<To>(get<From>(from)));
}
template <class To, class From>
void op_cvt_rn(Bits& to, Bits from) {
  if constexpr (std::is_same_v<To, f16>)
    to = cpr::to_half(get<float>(from));
  else
    to = put(static_cast<To>(get<From>(from)));
}
template <class To, class From>
void op_cvt_rn(Bits& to, Bits high, Bits low) {
  static_assert(std::is_same_v<To, f16x2>, "two at once only to halves");
  to = static_cast<u32>(cpr::to_half(get<From>(high))) << 16 | cpr::to_half(get<From>(low));
}
template <class To, class From>
void op_cvt_rzi(Bits& to, Bits from) {
  const double value = std::trunc(get<From>(from)), least = std::numeric_limits<To>::min(),
               most = std::numeric_limits<To>::max();
  to = put(value != value ? To{0} : static_cast<To>(std::min(std::max(value, least), most)));
}
template <class To, class From>
void op_cvt_sat(Bits& to, Bits from) {
  to = put(std::fmin(std::fmax(get<float>(from), 0.0f), 1.0f));
}
// Global addresses and generic ones are the host's; those of shared memory are offsets.
template <class T>
void op_cvta_to_global(Thread&, Bits& to, Bits from) {
  to = from;
}
template <class T>
void op_cvta_param(Thread&, Bits& to, Bits from) {
  to = from;
}
template <class T>
void op_cvta_shared(Thread& t, Bits& to, Bits from) {
  to = reinterpret_cast<Bits>(t.shared) + from;
}
template <class T>
void op_cvta_to_shared(Thread& t, Bits& to, Bits from) {
  to = from - reinterpret_cast<Bits>(t.shared);
}

inline Bits special_tid_x() { return static_cast<Bits>(cpr::thread_index()); }
inline Bits special_ntid_x() { return static_cast<Bits>(cpr::block_threads()); }
inline Bits special_ctaid_x() { return cpr::block_index(); }
inline Bits special_ctaid_y() { return cpr::block_index_y(); }
inline Bits special_ctaid_z() { return cpr::block_index_z(); }
inline Bits special_nctaid_x() { return cpr::grid_blocks(); }

}  // namespace ptx

#include "memory.h"
#include "warpgroup.h"
#pragma GCC pop_options
