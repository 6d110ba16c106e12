// Host signature of cpr::enqueue_.
#pragma once
#include <cstdint>

namespace cpr {

struct Column {
  char* buffer;      // [N, row_bytes], rows buffer_stride bytes apart
  const char* rows;  // [B, row_bytes], rows rows_stride bytes apart
  int64_t row_bytes;
  int64_t buffer_stride;
  int64_t rows_stride;
};

// Write B rows over the oldest of N entries, wrapping; of more than N the last N stay. Moves pointer and
// count.
void enqueue_cpu(const Column* columns, int num_columns, int64_t size, int64_t batch, int64_t* pointer,
                 int64_t* count);

// The same on the current CUDA device, queued on `stream`; null, or why it cannot run.
const char* enqueue_cuda(const Column* columns, int num_columns, int64_t size, int64_t batch,
                         int64_t* pointer, int64_t* count, void* stream);

}  // namespace cpr
