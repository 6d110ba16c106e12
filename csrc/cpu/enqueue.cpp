// cpr::enqueue_ on CPU: row copies into a ring.
#include "../enqueue.h"

#include <algorithm>
#include <cstring>

namespace cpr {

void enqueue_cpu(const Column* columns, int num_columns, int64_t size, int64_t batch, int64_t* pointer,
                 int64_t* count) {
  const int64_t skipped = std::max<int64_t>(batch - size, 0);
  // pointer and count of a foreign checkpoint may be any numbers
  const int64_t start = ((*pointer % size) + size) % size;
  for (int c = 0; c < num_columns; ++c) {
    const Column& column = columns[c];
    for (int64_t i = skipped; i < batch; ++i) {
      const int64_t slot = (start + i) % size;
      std::memcpy(column.buffer + slot * column.buffer_stride, column.rows + i * column.rows_stride,
                  static_cast<size_t>(column.row_bytes));
    }
  }
  *pointer = (start + batch) % size;
  *count = std::min(std::clamp<int64_t>(*count, 0, size) + batch, size);
}

}  // namespace cpr
