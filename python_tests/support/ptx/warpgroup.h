// What PTX instructions of sm_90a mean: products of a warpgroup, copies in bulk, barriers in shared memory.
// Their checks are those of csrc/cuda/device/emulate/hopper.h, and those of registers here.
#pragma once
#include <tuple>

namespace ptx {

// A place in shared memory that an instruction names.
template <class T>
T* named(Thread& t, u32 place, Bits offset, u32 bytes) {
  return reinterpret_cast<T*>(t.in_shared(place, offset, bytes));
}

template <class T>
void op_mbarrier_init_shared_cta(Thread& t, u32 place, Bits barrier, Bits count) {
  cpr::barrier_init(named<u64>(t, place, barrier, 8), get<u32>(count));
}
template <class T>
void op_mbarrier_arrive_shared_cta(Thread& t, u32 place, Bits&, Bits barrier) {
  cpr::barrier_arrive(named<u64>(t, place, barrier, 8));
}
template <class T>
void op_mbarrier_arrive_expect_tx_shared_cta(Thread& t, u32 place, Bits&, Bits barrier, Bits bytes) {
  cpr::barrier_arrive_expecting(named<u64>(t, place, barrier, 8), get<u32>(bytes));
}
template <class T>
void op_mbarrier_try_wait_parity_shared_cta(Thread& t, u32 place, Bits& ended, Bits barrier, Bits parity) {
  cpr::barrier_wait(named<u64>(t, place, barrier, 8), get<u32>(parity));
  ended = 1;
}
inline void op_fence_mbarrier_init_release_cluster() { cpr::barriers_are_made(); }
inline void op_fence_proxy_async_shared_cta() { cpr::show_to_tensor_cores(); }

inline void op_cp_async_bulk_shared_cluster_global_mbarrier_complete_tx_bytes(Thread& t, u32 place, Bits to,
                                                                              Bits from, Bits bytes,
                                                                              Bits barrier) {
  cpr::copy_bulk(t.shared + to, reinterpret_cast<const void*>(from), get<u32>(bytes),
                 named<u64>(t, place, barrier, 8));
  tally.global_bytes += get<u32>(bytes);
}

template <class T>
void op_setmaxnreg_inc_sync_aligned(Bits) {}
template <class T>
void op_setmaxnreg_dec_sync_aligned(Bits) {}

inline void op_wgmma_fence_sync_aligned(Thread&) { cpr::wgmma_fence(); }
inline void op_wgmma_commit_group_sync_aligned(Thread&) { cpr::wgmma_commit(); }
inline void op_wgmma_wait_group_sync_aligned(Thread& t, Bits pending) {
  if (pending != 0) fault("a wait for more groups than any kernel has");
  cpr::wgmma_wait<0>();
  for (const auto& known : t.accumulators)
    for (Bits* one : known.second)
      if (*one >> 32 == IN_FLIGHT) *one = get<u64>(*one) & 0xFFFFFFFFu;
  t.accumulators.clear();
  for (const auto& factor : t.factors)
    if (*factor.first != factor.second) fault("a factor in flight is overwritten");
  t.factors.clear();
}

template <class Operands, size_t... I>
std::array<Bits*, 64> first_64(Operands& operands, std::index_sequence<I...>) {
  return {&std::get<I>(operands)...};
}

// 64 accumulators, the rows of both factors, or one of them in four registers, whether to add to what is there,
// and signs and transpositions.
template <class D, class A, class B, class... Operands>
void op_wgmma_mma_async_sync_aligned_m64n128k16(Thread& t, Operands&&... all) {
  constexpr bool IN_REGISTERS = sizeof...(all) == 73;
  static_assert(IN_REGISTERS || sizeof...(all) == 71, "a factor in shared memory, or in four registers");
  std::tuple<Operands&...> operands(all...);
  const std::array<Bits*, 64> registers = first_64(operands, std::make_index_sequence<64>());
  constexpr size_t B_AT = IN_REGISTERS ? 68 : 65;
  const bool accumulate = std::get<B_AT + 1>(operands) != 0;
  if (std::get<B_AT + 2>(operands) != 1 || std::get<B_AT + 3>(operands) != 1)
    fault("signs of wgmma have no meaning here yet");
  cpr::emulate::Product product{0, std::get<B_AT>(operands), std::is_same_v<A, bf16>, accumulate, nullptr};
  if constexpr (IN_REGISTERS) {
    if (std::get<B_AT + 4>(operands) != 1 || product.bfloat)
      fault("factors in registers are float16, and the others columns");
    Bits* const four[4] = {&std::get<64>(operands), &std::get<65>(operands), &std::get<66>(operands),
                           &std::get<67>(operands)};
    uint32_t factor[4];
    for (int i = 0; i < 4; ++i) factor[i] = get<u32>(*four[i]), t.factors.emplace_back(four[i], *four[i]);
    product.in_registers = true;
    product.factor = cpr::emulate::gathered(factor);
  } else {
    if (std::get<B_AT + 4>(operands) != 0 || std::get<B_AT + 5>(operands) != 0)
      fault("transpositions of factors in shared memory have no meaning here yet");
    product.a = std::get<64>(operands);
  }
  std::array<float*, 64> at;
  for (size_t i = 0; i < 64; ++i) at[i] = reinterpret_cast<float*>(registers[i]);
  const bool known = t.accumulators.count(at[0]) > 0;
  if (known && t.accumulators[at[0]] != registers) fault("accumulators in flight in another order");
  for (Bits* one : registers) {
    if (known && *one >> 32 != IN_FLIGHT) fault("an accumulator in flight is overwritten");
    if (!known && *one >> 32 == IN_FLIGHT) fault("an accumulator in flight is another's, too");
  }
  product.sums = at[0];
  cpr::emulate::issue(product, at);
  for (Bits* one : registers) *one = get<u64>(*one) & 0xFFFFFFFFu | IN_FLIGHT << 32;
  t.accumulators[at[0]] = registers;
}

}  // namespace ptx
