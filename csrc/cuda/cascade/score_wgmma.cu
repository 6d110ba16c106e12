// The score kernels of compute capability 9.0 (score_wgmma.h) and their launch.
#include <algorithm>

#include "../device/host.h"
#include "launch_score_wgmma.h"
#include "score_wgmma.h"

namespace cpr {
namespace {

struct WgmmaArgs {
  ScoreArgs score;
  uint32_t parts;  // that share the tiles of queries
};

// Grid: x over blocks of 256 keys, y over views, z over parts of the queries. Its instructions are those of
// sm_90a only: elsewhere it traps, and the planner never takes it there.
template <bool BFLOAT, int PLANES>
CPR_KERNEL(WGMMA_THREADS, 1)
score_wgmma_kernel(WgmmaArgs args) {
#if defined(CPR_EMULATE) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  CPR_SHARED_MEMORY(shared);
  await_previous_kernel();
  let_next_kernel_start();
  score_by_wgmma<BFLOAT, PLANES>(args.score, args.parts, shared);
#else
  __trap();
#endif
}

template <bool BFLOAT, int PLANES>
const char* launch_as(const WgmmaArgs& args, bool follows, void* stream) {
  Grid grid;
  grid.x = (args.score.num_keys + WGMMA_KEYS - 1) / WGMMA_KEYS;
  grid.y = static_cast<uint32_t>(args.score.num_views);
  grid.z = args.parts;
  grid.threads = WGMMA_THREADS;
  int64_t padded = PACKED;
  for (int v = 0; v < args.score.num_views; ++v)
    padded = std::max<int64_t>(padded, rounded_up(args.score.views[v].dim, PACKED));
  grid.shared = wgmma_shared_bytes(PLANES, static_cast<int>(padded / PACKED));
  grid.follows = follows;
  return launch<score_wgmma_kernel<BFLOAT, PLANES>>(grid, args, stream);
}

}  // namespace

const char* launch_score_wgmma(DType dtype, const ScoreArgs& score, bool follows, void* stream) {
  const WgmmaArgs args{score, wgmma_parts(score.num_queries, score.num_keys, score.num_views)};
  switch (dtype) {
    case DType::float32:
      return launch_as<false, 2>(args, follows, stream);
    case DType::bfloat16:
      return launch_as<true, 1>(args, follows, stream);
    case DType::float16:
      return launch_as<false, 1>(args, follows, stream);
  }
  return "an unknown dtype";
}

}  // namespace cpr
