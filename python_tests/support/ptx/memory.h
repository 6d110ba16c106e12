// What PTX instructions mean that touch memory or other threads; see meaning.h.
#pragma once

namespace ptx {

template <class T, class... To>
void read(uint64_t from, To&... to) {
  ((to = put(*reinterpret_cast<const T*>(from)), from += sizeof(T)), ...);
}
template <class T, class... From>
void write(uint64_t to, From... from) {
  ((*reinterpret_cast<T*>(to) = get<T>(from), to += sizeof(T)), ...);
}
template <class T, class... To>
void op_ld_param(Thread&, u32, Bits address, To&... to) {
  read<T>(address, to...);
}
template <class T, class... To>
void op_ld_global(Thread& t, u32 place, Bits address, To&... to) {
  read<T>(t.anywhere(place, address, sizeof(T) * sizeof...(to)), to...);
}
template <class T, class... To>
void op_ld(Thread& t, u32 place, Bits address, To&... to) {
  // through a generic pointer a kernel also reads its parameters, which are aligned to 8 bytes at least
  op_ld_global<T>(t, place, address, to...);
}
template <class T, class... To>
void op_ld_shared(Thread& t, u32 place, Bits address, To&... to) {
  read<T>(t.in_shared(place, address, sizeof(T) * sizeof...(to)), to...);
}
template <class T, class... From>
void op_st_global(Thread& t, u32 place, Bits address, From... from) {
  write<T>(t.anywhere(place, address, sizeof(T) * sizeof...(from)), from...);
}
template <class T, class... From>
void op_st(Thread& t, u32 place, Bits address, From... from) {
  op_st_global<T>(t, place, address, from...);
}
template <class T, class... From>
void op_st_shared(Thread& t, u32 place, Bits address, From... from) {
  write<T>(t.in_shared(place, address, sizeof(T) * sizeof...(from)), from...);
  t.wrote(address, sizeof(T) * sizeof...(from));
}
// A place in another block's shared memory: the block in the upper bits, its number and one.
constexpr int BLOCK_SHIFT = 24;
template <class T>
void op_mapa_shared_cluster(Bits& to, Bits address, Bits block) {
  if (address >> BLOCK_SHIFT) fault("an address that is mapped to a block twice");
  to = static_cast<u32>(address + ((block + 1) << BLOCK_SHIFT));
}
template <class T>
void op_st_shared_cluster(Thread& t, u32 place, Bits address, Bits from) {
  const Bits block = get<u32>(address) >> BLOCK_SHIFT, offset = address & ((1u << BLOCK_SHIFT) - 1);
  if (block == 0) fault("an address that is mapped to no block");
  if (offset % sizeof(T)) fault("a misaligned access to another block's shared memory");
  write<T>(reinterpret_cast<uint64_t>(
               cpr::emulate::of_block(static_cast<u32>(block - 1), offset, sizeof(T))),
           from);
  t.note(place, address, sizeof(T), true);
}
template <class T>
void op_atom_shared_add(Thread& t, u32 place, Bits& before, Bits address, Bits value) {
  T* const at = reinterpret_cast<T*>(t.in_shared(place, address, sizeof(T)));
  before = put(*at);
  *at += get<T>(value);
}
template <class T>
void op_atom_shared_or(Thread& t, u32 place, Bits& before, Bits address, Bits value) {
  T* const at = reinterpret_cast<T*>(t.in_shared(place, address, sizeof(T)));
  before = put(*at);
  *at |= get<T>(value);
}
template <class T>
void op_red_shared_add(Thread& t, u32 place, Bits address, Bits value) {
  op_atom_shared_add<T>(t, place, t.sink, address, value);
}
template <class T>
void op_red_shared_or(Thread& t, u32 place, Bits address, Bits value) {
  op_atom_shared_or<T>(t, place, t.sink, address, value);
}

// Asynchronous copies of 16 bytes, or of as many zeros.
inline void op_cp_async_cg_shared_global(Thread& t, u32 place, Bits to, Bits from, Bits size,
                                         Bits real = 16) {
  if (size != 16 || (get<u32>(real) != 0 && get<u32>(real) != 16)) fault("an asynchronous copy of odd size");
  cpr::copy_async(reinterpret_cast<void*>(t.in_shared(place, to, 16)), reinterpret_cast<const void*>(from),
                  get<u32>(real) == 16);
  t.wrote(to, 16);
  tally.global_bytes += get<u32>(real);
}
inline void op_cp_async_commit_group(Thread&, u32) { cpr::copy_commit(); }
inline void op_cp_async_wait_group(Thread&, u32, Bits pending) {
  switch (pending) {
    case 0:
      return cpr::copy_wait<0>();
    case 1:
      return cpr::copy_wait<1>();
    case 2:
      return cpr::copy_wait<2>();
    case 3:
      return cpr::copy_wait<3>();
  }
  fault("a wait for more groups than any kernel has");
}

// Barriers.
inline void op_bar_sync(Thread&, Bits) { cpr::sync_block(); }
inline void op_bar_sync(Thread&, Bits which, Bits threads) {
  if (which != 1 && which != 2) fault("a barrier of some threads that has no meaning here");
  which == 1 ? cpr::sync_threads(static_cast<int>(threads)) : cpr::sync_all_of(static_cast<int>(threads));
}
inline void whole(Bits mask) {
  if (get<u32>(mask) != ~0u) fault("a warp-wide instruction without the whole warp");
}
inline void op_bar_warp_sync(Thread&, Bits mask) {
  whole(mask);
  cpr::sync_warp();
}
inline void op_barrier_cluster_arrive_release_aligned() { cpr::arrive_at_cluster(); }
inline void op_barrier_cluster_wait_acquire_aligned() { cpr::wait_for_cluster(); }
inline void op_trap() { fault("a kernel that is not for this architecture"); }
inline void op_griddepcontrol_wait() {}
inline void op_griddepcontrol_launch_dependents() {}

// Warp-wide.
inline void whole_warp(Bits mask, Bits clamp, Bits of_whole) {
  whole(mask);
  if (clamp != of_whole) fault("a shuffle within part of a warp");
}
template <class T>
void op_vote_sync_ballot(Bits& to, Bits yes, Bits mask) {
  whole(mask);
  to = cpr::ballot(yes != 0);
}
template <class T>
void op_shfl_sync_bfly(Bits& to, Bits value, Bits mask_of_lane, Bits clamp, Bits mask) {
  whole_warp(mask, clamp, 31);
  to = cpr::shuffle_xor<u32>(get<u32>(value), get<s32>(mask_of_lane));
}
template <class T>
void op_shfl_sync_idx(Bits& to, Bits value, Bits lane, Bits clamp, Bits mask) {
  whole_warp(mask, clamp, 31);
  to = cpr::shuffle<u32>(get<u32>(value), get<s32>(lane));
}
template <class T>
void op_shfl_sync_up(Bits& to, Bits value, Bits distance, Bits clamp, Bits mask) {
  whole_warp(mask, clamp, 0);
  to = cpr::shuffle_up<u32>(get<u32>(value), get<s32>(distance));
}
template <class T>
void op_redux_sync_add(Bits& to, Bits value, Bits mask) {
  whole(mask);
  to = cpr::warp_sum(get<u32>(value));
}
template <class T>
void op_redux_sync_max(Bits& to, Bits value, Bits mask) {
  static_assert(std::is_unsigned_v<T>, "signed maxima have no meaning here yet");
  whole(mask);
  to = cpr::warp_max(get<u32>(value));
}

// Tensor cores.
template <bool TRANSPOSED>
void load_four(Thread& t, u32 place, Bits (&to)[4], Bits address) {
  uint32_t made[4];
  cpr::load_matrices<TRANSPOSED>(made, reinterpret_cast<const void*>(t.in_shared(place, address, 16)));
  for (int i = 0; i < 4; ++i) to[i] = made[i];
}
template <class T>
void op_ldmatrix_sync_aligned_m8n8_x4_shared(Thread& t, u32 place, Bits& a, Bits& b, Bits& c, Bits& d,
                                             Bits address) {
  Bits made[4];
  load_four<false>(t, place, made, address);
  a = made[0], b = made[1], c = made[2], d = made[3];
}
template <class T>
void op_ldmatrix_sync_aligned_m8n8_x4_trans_shared(Thread& t, u32 place, Bits& a, Bits& b, Bits& c, Bits& d,
                                                   Bits address) {
  Bits made[4];
  load_four<true>(t, place, made, address);
  a = made[0], b = made[1], c = made[2], d = made[3];
}
template <class D, class A, class B, class C>
void op_mma_sync_aligned_m16n8k16_row_col(Bits& d0, Bits& d1, Bits& d2, Bits& d3, Bits a0, Bits a1, Bits a2,
                                          Bits a3, Bits b0, Bits b1, Bits c0, Bits c1, Bits c2, Bits c3) {
  float sum[4] = {get<float>(c0), get<float>(c1), get<float>(c2), get<float>(c3)};
  const uint32_t a[4] = {get<u32>(a0), get<u32>(a1), get<u32>(a2), get<u32>(a3)};
  cpr::multiply_add<std::is_same_v<A, bf16>>(sum, a, get<u32>(b0), get<u32>(b1));
  d0 = put(sum[0]), d1 = put(sum[1]), d2 = put(sum[2]), d3 = put(sum[3]);
}

}  // namespace ptx
