// The device's words that the kernels are written in: threads, barriers, warp votes, tensor-core and copy
// instructions. With CPR_EMULATE defined, emulate/ gives the same words a meaning in plain C++, so tests run
// the kernels on a CPU.
#pragma once
#include <cstdint>

#ifdef CPR_EMULATE
#include "emulate/cluster.h"
#include "emulate/products.h"
#else
#include <cuda_runtime.h>

#define CPR_DEVICE __device__ __forceinline__
#define CPR_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define assume(holds) __builtin_assume(holds)
#define CPR_SHARED_MEMORY(name) extern __shared__ __align__(128) unsigned char name[]

namespace cpr {

CPR_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
CPR_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
CPR_DEVICE uint32_t block_index() { return blockIdx.x; }
CPR_DEVICE uint32_t block_index_y() { return blockIdx.y; }
CPR_DEVICE uint32_t block_index_z() { return blockIdx.z; }
CPR_DEVICE uint32_t grid_blocks() { return gridDim.x; }

CPR_DEVICE void sync_block() { __syncthreads(); }
// Of the block's first `threads`, a multiple of 32.
CPR_DEVICE void sync_threads(int threads) { asm volatile("bar.sync 1, %0;" ::"r"(threads) : "memory"); }
// The same beside the former, of threads some of which are still at theirs.
CPR_DEVICE void sync_all_of(int threads) { asm volatile("bar.sync 2, %0;" ::"r"(threads) : "memory"); }
CPR_DEVICE void sync_warp() { __syncwarp(); }
// A barrier of a cluster's threads in two halves.
CPR_DEVICE void arrive_at_cluster() {
#if __CUDA_ARCH__ >= 900
  __syncwarp();  // the instruction wants whole warps
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
CPR_DEVICE void wait_for_cluster() {
#if __CUDA_ARCH__ >= 900
  __syncwarp();
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// For kernels that may start before the one before them on the stream has ended (host.h): until it has, and
// its memory can be read. Every kernel waits before it touches memory, so that none overtakes two.
CPR_DEVICE void await_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
CPR_DEVICE void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Warp-wide words: every lane of the warp must come along.
CPR_DEVICE uint32_t ballot(bool yes) { return __ballot_sync(0xFFFFFFFFu, yes); }
template <class T>
CPR_DEVICE T shuffle(T value, int lane) {
  return __shfl_sync(0xFFFFFFFFu, value, lane);
}
template <class T>
CPR_DEVICE T shuffle_up(T value, int distance) {
  return __shfl_up_sync(0xFFFFFFFFu, value, distance);
}
template <class T>
CPR_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xFFFFFFFFu, value, mask);
}
CPR_DEVICE uint32_t warp_sum(uint32_t value) { return __reduce_add_sync(0xFFFFFFFFu, value); }
CPR_DEVICE uint32_t warp_max(uint32_t value) { return __reduce_max_sync(0xFFFFFFFFu, value); }

CPR_DEVICE uint32_t shared_add(uint32_t* place, uint32_t value) { return atomicAdd(place, value); }
CPR_DEVICE void shared_or(uint32_t* place, uint32_t value) { atomicOr(place, value); }
CPR_DEVICE int count_bits(uint32_t bits) { return __popc(bits); }
CPR_DEVICE int leading_zeros(uint32_t bits) { return __clz(static_cast<int>(bits)); }
CPR_DEVICE float product(float a, float b) { return __fmul_rn(a, b); }  // never fused into a sum
CPR_DEVICE float plus(float a, float b) { return __fadd_rn(a, b); }
CPR_DEVICE float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
// The same kept within 0 and 1; 0 of NaN.
CPR_DEVICE float saturated_fused(float a, float b, float c) {
  float result;
  asm("fma.rn.sat.f32 %0, %1, %2, %3;" : "=f"(result) : "f"(a), "f"(b), "f"(c));
  return result;
}
CPR_DEVICE float larger(float a, float b) {  // NaN if one is
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}
// The one of larger magnitude, with some sign; NaN if one is. Of 8.6 and newer.
CPR_DEVICE float larger_magnitude(float a, float b) {
  float result;
  asm("max.NaN.xorsign.abs.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}
CPR_DEVICE float fast_exp2(float a) {  // near 2^a; 0 where that is no normal number
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(a));
  return result;
}
CPR_DEVICE bool unordered(float a, float b) { return a != a || b != b; }  // is one NaN?
// Marks with `bit` a value above `high`; the most of the others is kept in `rest`.
CPR_DEVICE void mark_above(float value, float high, uint32_t bit, uint32_t& marked, float& rest) {
  asm("{.reg .pred %%above; setp.gt.f32 %%above, %2, %3; @%%above or.b32 %0, %0, %4; "
      "@!%%above max.f32 %1, %1, %2;}"
      : "+r"(marked), "+f"(rest)
      : "f"(value), "f"(high), "r"(bit));
}
CPR_DEVICE uint32_t bits_of(float value) { return __float_as_uint(value); }
CPR_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }

CPR_DEVICE uint16_t to_half(float value) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
// Two at once: `low` in the lower 16 bits.
CPR_DEVICE uint32_t to_halves(float low, float high) {
  uint32_t bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}
// Both times a power of two.
template <uint16_t FACTOR>  // its bits
CPR_DEVICE uint32_t scaled_halves(uint32_t pair) {
  uint32_t bits;
  asm("mul.f16x2 %0, %1, %2;" : "=r"(bits) : "r"(pair), "r"(FACTOR * 0x10001u));
  return bits;
}
CPR_DEVICE float from_half(uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

// The same back again.
CPR_DEVICE void from_halves(uint32_t bits, float& low, float& high) {
  asm("{.reg .b16 %%first, %%second; mov.b32 {%%first, %%second}, %2; cvt.f32.f16 %0, %%first; "
      "cvt.f32.f16 %1, %%second;}"
      : "=f"(low), "=f"(high)
      : "r"(bits));
}

CPR_DEVICE uint32_t shared_address(const void* place) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(place));
}

// Numbers in the shared memory of a block of the cluster: where this block has them at `place`. They may be
// written between two barriers of the cluster. Of 9.0 and newer.
struct FloatsOfBlock {
  uint32_t at;
  CPR_DEVICE FloatsOfBlock(const float* place, uint32_t block) {
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(shared_address(place)), "r"(block));
  }
  template <int AFTER>  // so many numbers
  CPR_DEVICE void store(float value) const {
    asm volatile("st.shared::cluster.f32 [%0+%2], %1;" ::"r"(at), "f"(value), "n"(4 * AFTER) : "memory");
  }
};

// A place in shared memory where 32-bit words go one after the other.
struct SharedWords {
  uint32_t at;
  CPR_DEVICE explicit SharedWords(const void* place) : at(shared_address(place)) {}
};
// Where `bit` of `marked` is set, a word goes to each of three places, which move on.
CPR_DEVICE void store_marked(uint32_t marked, uint32_t bit, SharedWords& a, float to_a, SharedWords& b,
                             float to_b, SharedWords& c, uint32_t to_c) {
  asm volatile(
      "{.reg .pred %%stays; .reg .b32 %%one; and.b32 %%one, %3, %4; setp.ne.u32 %%stays, %%one, 0; "
      "@%%stays st.shared.f32 [%0], %5; @%%stays st.shared.f32 [%1], %6; @%%stays st.shared.u32 [%2], %7; "
      "@%%stays add.u32 %0, %0, 4; @%%stays add.u32 %1, %1, 4; @%%stays add.u32 %2, %2, 4;}"
      : "+r"(a.at), "+r"(b.at), "+r"(c.at)
      : "r"(marked), "r"(bit), "f"(to_a), "f"(to_b), "r"(to_c)
      : "memory");
}

// 16 bytes from global to shared memory while the thread continues; zeros when not `real`. Both 16-byte
// aligned.
CPR_DEVICE void copy_async(void* to, const void* from, bool real) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(real ? 16 : 0)
               : "memory");
}
// The same of places so many bytes further, always real.
template <int TO, int FROM>
CPR_DEVICE void copy_async_at(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0+%2], [%1+%3], 16;" ::"r"(shared_address(to)), "l"(from),
               "n"(TO), "n"(FROM)
               : "memory");
}
CPR_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING>
CPR_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Four 8x8 matrices of 16-bit elements; lanes 8i..8i+7 name the rows of matrix i. TRANSPOSED hands out
// columns.
template <bool TRANSPOSED>
CPR_DEVICE void load_matrices(uint32_t (&to)[4], const void* row) {
  if constexpr (TRANSPOSED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// sum[16 x 8] += a[16 x 16] b[16 x 8], products exact, sums in float32.
template <bool BFLOAT>
CPR_DEVICE void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (BFLOAT)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace cpr
#endif
