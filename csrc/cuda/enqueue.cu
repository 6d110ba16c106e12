// cpr::enqueue_ on CUDA: row copies into a ring whose pointer is on the device, so nothing is waited for.
#include <algorithm>

#include "../enqueue.h"
#include "device/host.h"

namespace cpr {
namespace {

constexpr int THREADS = 128;

struct EnqueueArgs {
  Column columns[MAX_COLUMNS];
  int64_t size, batch;
  int64_t* pointer;
  int64_t* count;
};

CPR_DEVICE int64_t start_of(const EnqueueArgs& args) {
  return (*args.pointer % args.size + args.size) % args.size;
}

// Grid: x over rows that stay, y over columns. 16 bytes at a time where all addresses allow it.
CPR_KERNEL(THREADS, 1) copy_rows_kernel(EnqueueArgs args) {
  struct alignas(16) Sixteen {
    uint64_t of[2];
  };
  let_next_kernel_start();
  const Column& column = args.columns[block_index_y()];
  const int64_t skipped = args.batch > args.size ? args.batch - args.size : 0, start = start_of(args);
  for (int64_t i = skipped + block_index(); i < args.batch; i += grid_blocks()) {
    char* to = column.buffer + (start + i) % args.size * column.buffer_stride;
    const char* from = column.rows + i * column.rows_stride;
    const int64_t wide = ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) & 15) == 0
                             ? column.row_bytes / 16
                             : 0;
    for (int64_t w = thread_index(); w < wide; w += THREADS)
      reinterpret_cast<Sixteen*>(to)[w] = reinterpret_cast<const Sixteen*>(from)[w];
    for (int64_t c = 16 * wide + thread_index(); c < column.row_bytes; c += THREADS) to[c] = from[c];
  }
}

// One thread, after all rows: the next kernel on the stream.
CPR_KERNEL(32, 1) advance_kernel(EnqueueArgs args) {
  await_previous_kernel();
  if (thread_index() != 0) return;
  *args.pointer = (start_of(args) + args.batch) % args.size;
  const int64_t before = *args.count < 0 ? 0 : *args.count < args.size ? *args.count : args.size;
  *args.count = before + args.batch < args.size ? before + args.batch : args.size;
}

}  // namespace

const char* enqueue_cuda(const Column* columns, int num_columns, int64_t size, int64_t batch,
                         int64_t* pointer, int64_t* count, void* stream) {
  if (num_columns > MAX_COLUMNS) return "the CUDA kernels fill at most 16 columns";
  if (batch == 0) return nullptr;
  EnqueueArgs args{};
  std::copy(columns, columns + num_columns, args.columns);
  args.size = size;
  args.batch = batch;
  args.pointer = pointer;
  args.count = count;
  Grid grid;
  grid.x = static_cast<uint32_t>(std::min<int64_t>(std::min(batch, size), 65536));
  grid.y = static_cast<uint32_t>(num_columns);
  grid.threads = THREADS;
  if (const char* error = launch<copy_rows_kernel>(grid, args, stream)) return error;
  grid = Grid{};
  grid.threads = 32;
  grid.follows = true;
  return launch<advance_kernel>(grid, args, stream);
}

}  // namespace cpr
