// The loss kernels of compute capability 9.0 (attend_wgmma.h) and their launch.
#include "../device/host.h"
#include "attend_wgmma.h"
#include "launch_attend_wgmma.h"

namespace cpr {
namespace {

// Grid: x over two times 64 queries, y over parts of the keys. Its instructions are those of sm_90a only:
// elsewhere it traps, and the planner never takes it there.
template <int PLANES, int MODE>
CPR_KERNEL(ATTEND_WGMMA_THREADS, 1)
attend_wgmma_kernel(AttendArgs args) {
#if defined(CPR_EMULATE) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  CPR_SHARED_MEMORY(shared);
  await_previous_kernel();
  let_next_kernel_start();
  attend_by_wgmma<PLANES, MODE>(args, shared);
#else
  __trap();
#endif
}

template <int PLANES, int MODE>
const char* launch_as(const AttendArgs& args, int64_t parts, void* stream) {
  Grid grid;
  grid.x = (args.num_rows + ATTEND_GROUPS * PACKED - 1) / (ATTEND_GROUPS * PACKED);
  grid.y = static_cast<uint32_t>(parts);
  grid.threads = ATTEND_WGMMA_THREADS;
  grid.shared = AttendShared<PLANES>::BYTES;
  grid.follows = true;
  return launch<attend_wgmma_kernel<PLANES, MODE>>(grid, args, stream);
}

template <int PLANES>
const char* launch_of(const AttendArgs& args, int64_t parts, void* stream) {
  return args.ranks.own ? launch_as<PLANES, ATTEND_RANKS>(args, parts, stream)
                        : launch_as<PLANES, ATTEND_SUMS>(args, parts, stream);
}

}  // namespace

const char* launch_attend_wgmma(DType dtype, const AttendArgs& args, int64_t parts, void* stream) {
  return dtype == DType::float32 ? launch_of<2>(args, parts, stream) : launch_of<1>(args, parts, stream);
}

}  // namespace cpr
