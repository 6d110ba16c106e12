// The launch of a selection, which cascade_topk and cascade_rerank share.
#pragma once
#include "layout.h"
#include "stages.h"

namespace cpr {

// The arguments for queries [first, first + count), of which the first one's scores are the first of `rows`.
SelectArgs select_args(const CascadeArgs& args, const SelectLayout& layout, const ScoreRows& rows,
                       int64_t first, int64_t count);

// A block a query. `follows`: another kernel of the stream was launched just before.
const char* launch_select(const SelectArgs& args, const SelectLayout& layout, bool follows, void* stream);

}  // namespace cpr
