// The kernel that readies features for the tensor cores, and its launch.
#pragma once
#include <algorithm>

#include "device/host.h"
#include "score.h"

namespace cpr {
namespace {

// Grid: x over blocks of PREPARED rows, y over operands.
CPR_KERNEL(SCORE_THREADS, 4) prepare_kernel(PrepareList args) {
  let_next_kernel_start();
  const PrepareArgs& rows = args.of[block_index_y()];
  if (rows.packed)
    pack_rows(rows, block_index(), grid_blocks());
  else
    prepare_rows(rows, block_index(), grid_blocks());
}

const char* launch_prepare(const PrepareList& list, int count, void* stream) {
  int64_t most = 0;
  for (int i = 0; i < count; ++i) most = std::max(most, list.of[i].count);
  if (most == 0) return nullptr;
  Grid grid;
  grid.x = static_cast<uint32_t>(std::min<int64_t>((most + PREPARED - 1) / PREPARED, 4096));
  grid.y = static_cast<uint32_t>(count);
  grid.threads = SCORE_THREADS;
  return launch<prepare_kernel>(grid, list, stream);
}

}  // namespace
}  // namespace cpr
