// cpr::cascade_rerank on CUDA: a call over listed candidates, planned as if they were all the keys there are.
// Scores are gathered, then selected as cascade_topk selects.
#include <algorithm>

#include "../../cascade_rerank.h"
#include "../device/host.h"
#include "../select/launch.h"
#include "gather.h"
#include "layout.h"

namespace cpr {
namespace {

CascadeArgs over_candidates(const RerankArgs& args) {
  CascadeArgs listed = args.cascade;
  listed.num_keys = args.num_candidates;
  listed.bias_stride = score_pitch(args.num_candidates);
  return listed;
}

GatherArgs gather_args(const RerankArgs& args, const CascadeLayout& layout) {
  const CascadeArgs& cascade = args.cascade;
  GatherArgs gather{};
  for (int v = 0; v < layout.select.weightings.num_views; ++v) {
    const View& view = cascade.views[layout.select.used[v]];
    gather.views[v] = {view.queries, view.keys, view.query_stride, view.key_stride, view.dim};
  }
  gather.listed = args.candidates;
  gather.listed_stride = args.candidates_stride;
  gather.count = static_cast<uint32_t>(args.num_candidates);
  gather.out = layout.scores;
  gather.view_stride = layout.chunk * layout.pitch;
  gather.pitch = layout.pitch;
  gather.query_ids = cascade.query_ids;
  gather.key_ids = cascade.key_ids;
  gather.exclude = cascade.exclude;
  gather.exclude_stride = cascade.exclude_stride;
  return gather;
}

template <int TYPE>
const char* run(const RerankArgs& args, const CascadeLayout& layout, void* stream) {
  const CascadeArgs listed = over_candidates(args);
  GatherArgs gather = gather_args(args, layout);
  for (int64_t first = 0; first < listed.num_queries; first += layout.chunk) {
    const int64_t count = std::min(layout.chunk, listed.num_queries - first);
    gather.first_query = first;
    const char* error = nullptr;
    if (gather.count > 0)
      error = launch_gather<TYPE>(gather, count, layout.select.weightings.num_views, stream);
    if (!error)
      error = launch_select(select_args(listed, layout.select, layout.score_rows(), first, count),
                            layout.select, false, stream);
    if (error) return error;
  }
  return nullptr;
}

}  // namespace

const char* cascade_rerank_cuda_workspace(const RerankArgs& args, int64_t* bytes) {
  CascadeLayout layout;
  const char* reason = plan_cascade(over_candidates(args), limits_of_current_device(), nullptr, true, layout);
  *bytes = layout.bytes;
  return reason;
}

const char* cascade_rerank_cuda(const RerankArgs& args, void* workspace, int64_t bytes, void* stream) {
  if (args.cascade.num_queries == 0) return nullptr;
  CascadeLayout layout;
  if (const char* reason =
          plan_cascade(over_candidates(args), limits_of_current_device(), workspace, true, layout))
    return reason;
  if (layout.bytes > bytes) return "the workspace is smaller than cascade_rerank_cuda_workspace says";
  switch (args.cascade.dtype) {
    case DType::float32:
      return run<0>(args, layout, stream);
    case DType::bfloat16:
      return run<1>(args, layout, stream);
    case DType::float16:
      return run<2>(args, layout, stream);
  }
  return "an unknown dtype";
}

}  // namespace cpr
