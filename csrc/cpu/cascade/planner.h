// Plans a cascade, for the dispatcher.
#pragma once
#include <array>
#include <vector>

#include "../../cascade_topk.h"
#include "plan.h"

namespace cpr {

constexpr int64_t NEVER = INT64_MAX;

// What a plan points to.
struct PlanStorage {
  std::vector<int> slot_of_row, row_of_stage;
  std::vector<float> mix_weights;
  std::vector<uint8_t> view_used;
  std::vector<int64_t> keep;
  std::vector<Pass> passes;
  std::vector<std::array<int64_t, 3 * MAX_LEVELS>> ranks;  // of each pass: certain, middle, possible
};

// How a call that has queries and keys runs. `int16_from`: keys from which 16-bit products are faster than
// float32; `wider`: times the usual brackets.
CascadePlan plan_cascade(const CascadeArgs& args, PlanStorage& store, int64_t int16_from, double wider = 1);
// The same without brackets: every eligible entry is collected, and no query can miss.
CascadePlan plan_exhaustive(const CascadeArgs& args, PlanStorage& store);
// Without passes: the rows and stages alone, each query with up to `list_capacity` entries.
CascadePlan plan_lists(const CascadeArgs& args, PlanStorage& store, int64_t list_capacity);

}  // namespace cpr
