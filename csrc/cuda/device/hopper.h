// Words that only compute capability 9.0 has (sm_90a): products of a warpgroup from shared memory, copies in
// bulk, and barriers in memory that wait for both. With CPR_EMULATE defined, emulate/hopper.h gives them a
// meaning.
#pragma once
#include "device.h"

namespace cpr {

// Where the tensor cores find rows of 128 bytes (64 features of 16 bits), 128-byte swizzled: piece p of 16
// bytes of row r is at place p ^ (r & 7) of the row. Groups of 8 rows are 1,024 bytes apart and begin at a
// multiple of 1,024. `offset` is the address of the first row's first feature in shared memory.
CPR_DEVICE uint64_t swizzled_rows(uint32_t offset) {
  constexpr uint64_t SWIZZLE_128 = uint64_t{1} << 62, GROUP = uint64_t{1024 >> 4} << 32,
                     UNUSED = uint64_t{1} << 16;  // the leading distance means nothing to swizzled rows
  return SWIZZLE_128 | GROUP | UNUSED | (offset & 0x3FFFFu) >> 4;
}
constexpr uint64_t NEXT_16_FEATURES = 32 >> 4;  // what to add to swizzled_rows, within 64 features

// Where they find the same rows as the columns of a product: it sums over 16 rows, for 128 features, of which
// the second 64 are `distance` bytes behind the first.
CPR_DEVICE uint64_t swizzled_columns(uint32_t offset, uint32_t distance) {
  return (swizzled_rows(offset) & ~(uint64_t{0x3FFF} << 16)) | static_cast<uint64_t>(distance >> 4) << 16;
}
constexpr uint64_t NEXT_16_ROWS = 16 * 128 >> 4;  // what to add to swizzled_columns

}  // namespace cpr

#ifdef CPR_EMULATE
#include "emulate/hopper.h"
#else

namespace cpr {

// A barrier in shared memory ends a phase when `count` arrivals and all bytes expected have come. Phases are
// waited for by parity: 0, 1, 0, ...
CPR_DEVICE void barrier_init(uint64_t* barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count)
               : "memory");
}
// Of the thread that has initialised barriers, before a block's sync: copies in bulk see them.
CPR_DEVICE void barriers_are_made() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
CPR_DEVICE void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
CPR_DEVICE void barrier_arrive_expecting(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
}
CPR_DEVICE void barrier_wait(uint64_t* barrier, uint32_t parity) {
  uint32_t ended;
  do {
    asm volatile(
        "{\n.reg .pred %%ended;\nmbarrier.try_wait.parity.shared::cta.b64 %%ended, [%1], %2;\n"
        "selp.u32 %0, 1, 0, %%ended; }"
        : "=r"(ended)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (!ended);
}

// `bytes` from global to shared memory, counted by a barrier; all multiples of 16. One thread does it.
CPR_DEVICE void copy_bulk(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

// What this thread has written to shared memory can be read by the tensor cores.
CPR_DEVICE void show_to_tensor_cores() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// What was read from memory is read again, not kept in registers.
CPR_DEVICE void forget_loads() { asm volatile("" ::: "memory"); }

// A warpgroup takes registers, up to COUNT a thread, that another has released; each whole and once.
template <int COUNT>
CPR_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
CPR_DEVICE void release_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// Before the first product of accumulators that other instructions touched.
CPR_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
CPR_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING>
CPR_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Accumulators are read only after the wait, and factors written before the fence, whatever a compiler moves.
template <int N>
CPR_DEVICE void wgmma_hold(float (&sum)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; ++n)
    asm volatile("" : "+f"(sum[n][0]), "+f"(sum[n][1]), "+f"(sum[n][2]), "+f"(sum[n][3])::"memory");
}
template <int N>
CPR_DEVICE void wgmma_hold(uint32_t (&factor)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; ++n)
    asm volatile(""
                 : "+r"(factor[n][0]), "+r"(factor[n][1]), "+r"(factor[n][2]), "+r"(factor[n][3])::"memory");
}

#define CPR_WGMMA_SUMS                                                                                      \
  "+f"(sum[0][0]), "+f"(sum[0][1]), "+f"(sum[0][2]), "+f"(sum[0][3]), "+f"(sum[1][0]), "+f"(sum[1][1]),     \
      "+f"(sum[1][2]), "+f"(sum[1][3]), "+f"(sum[2][0]), "+f"(sum[2][1]), "+f"(sum[2][2]), "+f"(sum[2][3]), \
      "+f"(sum[3][0]), "+f"(sum[3][1]), "+f"(sum[3][2]), "+f"(sum[3][3]), "+f"(sum[4][0]), "+f"(sum[4][1]), \
      "+f"(sum[4][2]), "+f"(sum[4][3]), "+f"(sum[5][0]), "+f"(sum[5][1]), "+f"(sum[5][2]), "+f"(sum[5][3]), \
      "+f"(sum[6][0]), "+f"(sum[6][1]), "+f"(sum[6][2]), "+f"(sum[6][3]), "+f"(sum[7][0]), "+f"(sum[7][1]), \
      "+f"(sum[7][2]), "+f"(sum[7][3]), "+f"(sum[8][0]), "+f"(sum[8][1]), "+f"(sum[8][2]), "+f"(sum[8][3]), \
      "+f"(sum[9][0]), "+f"(sum[9][1]), "+f"(sum[9][2]), "+f"(sum[9][3]), "+f"(sum[10][0]),                 \
      "+f"(sum[10][1]), "+f"(sum[10][2]), "+f"(sum[10][3]), "+f"(sum[11][0]), "+f"(sum[11][1]),             \
      "+f"(sum[11][2]), "+f"(sum[11][3]), "+f"(sum[12][0]), "+f"(sum[12][1]), "+f"(sum[12][2]),             \
      "+f"(sum[12][3]), "+f"(sum[13][0]), "+f"(sum[13][1]), "+f"(sum[13][2]), "+f"(sum[13][3]),             \
      "+f"(sum[14][0]), "+f"(sum[14][1]), "+f"(sum[14][2]), "+f"(sum[14][3]), "+f"(sum[15][0]),             \
      "+f"(sum[15][1]), "+f"(sum[15][2]), "+f"(sum[15][3])
#define CPR_WGMMA_REGISTERS                                                          \
  " {"                                                                               \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
#define CPR_WGMMA(TYPE)                                                                \
  asm volatile(                                                                        \
      "{\n.reg .pred %%accumulate;\nsetp.ne.b32 %%accumulate, %66, 0;\n"               \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE CPR_WGMMA_REGISTERS \
      "%64, %65, %%accumulate, 1, 1, 0, 0; }"                                          \
      : CPR_WGMMA_SUMS                                                                 \
      : "l"(a), "l"(b), "r"(accumulate ? 1 : 0))

// sum[64 x 128] (+)= a[64 x 16] b[128 x 16] by the 128 threads of a warpgroup, while they continue. Warp w
// has rows 16 w to 16 w + 15, each lane as in a row of 16 pieces of 16 x 8 by multiply_add.
template <bool BFLOAT>
CPR_DEVICE void wgmma_multiply(float (&sum)[16][4], uint64_t a, uint64_t b, bool accumulate) {
  if constexpr (BFLOAT)
    CPR_WGMMA("bf16");
  else
    CPR_WGMMA("f16");
}
#undef CPR_WGMMA

// sum[64 x 128] += a[64 x 16] b[16 x 128], likewise: a lane has its part of `a` as by multiply_add, and keeps
// it until the wait; b as swizzled_columns. float16.
CPR_DEVICE void wgmma_add_columns(float (&sum)[16][4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      "{\n.reg .pred %%accumulate;\nsetp.ne.b32 %%accumulate, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16" CPR_WGMMA_REGISTERS
      "{%64, %65, %66, %67}, %68, %%accumulate, 1, 1, 1; }"
      : CPR_WGMMA_SUMS
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
}
#undef CPR_WGMMA_SUMS
#undef CPR_WGMMA_REGISTERS

}  // namespace cpr
#endif
