// The sums of a loss on compute capability 9.0, of rows packed in both planes (split_rows.h), with
// statistics where there is room for them.
#pragma once
#include "attend_weights.h"

namespace cpr {

const char* launch_attend_wgmma(DType dtype, const AttendArgs& args, int64_t parts, void* stream);

}  // namespace cpr
