// The functions that each instruction set's objects define.
#pragma once
#include <cstdint>

#include "../cascade_rerank.h"
#include "../cascade_topk.h"
#include "../mil_nce.h"
#include "../shard.h"

namespace cpr {

struct CascadePlan;  // cascade/plan.h

// cascade_topk: 0, or -1 when memory ran out; queries that it could not select are marked in the plan.
struct CpuKernels {
  int (*cascade_topk)(const CascadeArgs&, const CascadePlan&);
  CpuPlan (*describe_plan)(const CascadeArgs&, const CascadePlan&);
};

struct PeakKernels {
  double (*flops_per_second)(int threads);
};

struct RerankKernels {
  bool (*cascade_rerank)(const RerankArgs&, const CascadePlan&);
};

struct LossKernels {
  bool (*sweep)(const LossArgs&, const LossOut&);
  bool (*keys_gradient)(const LossArgs&, const float*, const float*, const float*, float*);
  bool (*share)(const LossArgs&, const LossShare&);
  LossPlan (*describe_plan)(const LossArgs&);
};

struct ShardKernels {
  bool (*collect_entries)(const CascadeArgs&, const CascadePlan&, const EntryLists&);
  void (*count_digits)(const EntryLists&, int, const DigitSearch&, int32_t*);
  void (*keep_above)(const EntryLists&, int, const int32_t*, const int32_t*);
};

}  // namespace cpr
