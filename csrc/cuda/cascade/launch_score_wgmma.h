// The scores of a sweep on compute capability 9.0, queries packed (split_rows.h) and keys in rows.
#pragma once
#include "../score.h"

namespace cpr {

const char* launch_score_wgmma(DType dtype, const ScoreArgs& args, bool follows, void* stream);

}  // namespace cpr
