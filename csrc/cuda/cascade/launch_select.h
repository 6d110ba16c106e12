// The selection of a sweep's queries, which cascade_topk and cascade_rerank share.
#pragma once
#include "layout.h"
#include "stages.h"

namespace cpr {

// The select kernel's arguments for queries [first, first + count).
SelectArgs select_args(const CascadeArgs& args, const CascadeLayout& layout, int64_t first, int64_t count);

const char* launch_select(const SelectArgs& args, const CascadeLayout& layout, bool follows, void* stream);

}  // namespace cpr
