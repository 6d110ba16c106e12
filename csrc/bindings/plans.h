// Launch plans: how a call would run on the CPU, or on a CUDA device that need not be here. Runs nothing.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdio>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "../cuda/cascade/layout.h"
#include "../cuda/loss/layout.h"
#include "arguments.h"

namespace cpr {
namespace plan_bindings {

namespace py = pybind11;
using Limits = std::tuple<int, int64_t, int64_t, bool>;  // as DeviceLimits

inline DeviceLimits limits_of(const Limits& limits) {
  return {std::get<0>(limits), std::get<1>(limits), std::get<2>(limits), std::get<3>(limits)};
}

inline std::string amount(int64_t bytes) {
  char text[32];
  const double kilobytes = static_cast<double>(bytes) / 1024;
  std::snprintf(text, sizeof text, bytes < 1 << 20 ? "%.0f KB" : "%.1f MB",
                bytes < 1 << 20 ? kilobytes : kilobytes / 1024);
  return text;
}

// The rule that chose the path.
inline std::string rule_of(const CascadeArgs& args, const DeviceLimits& limits, bool gathered,
                           const CascadeLayout& layout) {
  const std::string queries = std::to_string(TINY_QUERIES), keys = std::to_string(TINY_KEYS);
  const std::string codes = layout.select.coded_entries > 0 ? "; selection by 16-bit codes" : "";
  if (layout.tiny)
    return "at most " + queries + " queries and " + keys +
           " entries: one launch of 16 blocks that share their keys and hold all scores, since "
           "several launches would wait longer for each other than they work" +
           codes;
  const char* const why_not = why_not_tiny(args, limits, layout);
  std::string text = gathered  ? "candidates are gathered, not multiplied by tiles"
                     : why_not ? why_not
                               : "lists longer than shared memory holds";
  const int64_t a_query = 4 * layout.pitch * layout.select.weightings.num_views,
                room = ring_bytes(limits.cache_bytes);
  const std::string sizes =
      " five eighths of the L2 (" + amount(room) + ", and a query's take " + amount(a_query) + ")";
  text += layout.in_cache ? "; scores that fit" + sizes + " stay there from the score kernel to the selection"
                          : "; the scores of neither " + std::to_string(SWEEP_QUERIES) +
                                " queries nor all fit" + sizes + ", so they go through device memory";
  if (layout.wgmma)
    text += "; scores by wgmma, " + std::to_string(WGMMA_KEYS) +
            " keys held by a block while queries stream" +
            (layout.splits ? ", which splits them itself" : "");
  else if (limits.capability == 90 && !gathered && args.num_keys > 0)
    text += std::string("; scores by mma.sync, not wgmma: ") + why_not_wgmma(args, limits, layout);
  text += codes;
  if (tuning().sweep > 0) text += "; the size of a sweep was set by cuda_tune";
  return text;
}

inline void bind(py::module_& m) {
  m.def(
      "plan_cuda_cascade",
      [](const Views& views, int dtype, int64_t num_queries, int64_t num_keys,
         const std::vector<float>& weights, const std::vector<int64_t>& keep, Address key_bias,
         const Limits& of, bool gathered) {
        const CascadeCall call(views, dtype, num_queries, num_keys, weights, keep, {0, 0, 0, 0, key_bias});
        const DeviceLimits limits = limits_of(of);
        CascadeLayout layout;
        if (const char* reason = plan_cascade(call.args, limits, nullptr, gathered, layout))
          throw std::invalid_argument(reason);
        const char* path = layout.tiny ? "tiny" : layout.in_cache ? "ring" : "huge";
        return std::make_tuple(path, layout.chunk, layout.sweeps(num_queries), layout.bytes, layout.select.threads,
                               layout.select.lists_fit_shared(),
                               rule_of(call.args, limits, gathered, layout));
      },
      "Path, queries a sweep, sweeps, bytes of workspace, threads a selecting block, whether its lists fit "
      "shared memory, and the rule that chose the path.");
  m.def(
      "plan_cuda_mil_nce",
      [](int dtype, const std::tuple<int64_t, int64_t, int64_t>& sizes, const Limits& limits, bool gradient) {
        LossArgs args{};
        args.dtype = static_cast<DType>(dtype);
        std::tie(args.num_queries, args.num_keys, args.dim) = sizes;
        LossLayout layout;
        const LossWanted wanted{true, gradient, false};
        if (const char* reason = plan_loss(args, wanted, limits_of(limits), nullptr, layout))
          throw std::invalid_argument(reason);
        std::string products = layout.wgmma ? "wgmma" : "mma.sync";
        if (!layout.wgmma && limits_of(limits).capability == 90 && args.num_keys > 0)
          products += std::string(", not wgmma: ") + why_not_attend_wgmma(args, limits_of(limits));
        return std::make_tuple(layout.parts, layout.part_columns, layout.wide, layout.bytes, products);
      },
      "Parts of the keys, keys a part, whether features stream through a block, bytes of workspace, and what "
      "forms products, with the reason where 9.0 does not by wgmma.");
  m.def(
      "plan_cpu_cascade",
      [](const Views& views, int dtype, int64_t num_queries, int64_t num_keys,
         const std::vector<float>& weights, const std::vector<int64_t>& keep, Address key_bias, int threads) {
        CascadeCall call(views, dtype, num_queries, num_keys, weights, keep, {0, 0, 0, 0, key_bias});
        call.args.threads = threads;
        const CpuPlan plan = cascade_topk_cpu_plan(call.args);
        return std::make_tuple(plan.lanes, plan.threads, plan.group, plan.groups, plan.parts, plan.passes,
                               plan.levels, plan.int16_scores, plan.bias ? plan.bias : "");
      },
      "As CpuPlan of cascade_topk.h; zeros where there is nothing to do.");
  m.def(
      "plan_cpu_mil_nce",
      [](int dtype, const std::tuple<int64_t, int64_t, int64_t>& sizes, int threads) {
        LossArgs args{};
        args.dtype = static_cast<DType>(dtype);
        std::tie(args.num_queries, args.num_keys, args.dim) = sizes;
        args.temperature = 1.0f;
        args.threads = threads;
        const LossPlan plan = mil_nce_cpu_plan(args);
        return std::make_tuple(plan.lanes, plan.group, plan.groups, plan.parts);
      },
      "As LossPlan of mil_nce.h; zeros where there is nothing to do.");
}

}  // namespace plan_bindings
}  // namespace cpr
