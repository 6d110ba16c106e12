// The bindings of the core: addresses, sizes and strides in, results written in place. The GIL is released.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <new>
#include <string>
#include <vector>

#include "../cascade_rerank.h"
#include "../cascade_topk.h"
#include "../cpu/workspace.h"
#include "../cpu_info.h"
#include "../cuda/device/device_limits.h"
#include "../enqueue.h"
#include "../mil_nce.h"
#include "../shard.h"
#include "../types.h"
#include "arguments.h"
#include "fast_cascade.h"
#include "fast_enqueue.h"
#include "fast_plan.h"
#include "plans.h"
#include "shards.h"
#ifdef CPR_HAS_CUDA
#include "cuda.h"
#endif

namespace py = pybind11;
using namespace cpr;

namespace {

std::int64_t cascade_topk(const Views& views, int dtype, int64_t num_queries, int64_t num_keys,
                          const std::vector<float>& weights, const std::vector<int64_t>& keep,
                          const CascadeMasks& masks, const Mined& out, int threads) {
  const py::gil_scoped_release unlocked;
  CascadeCall call(views, dtype, num_queries, num_keys, weights, keep, masks, out);
  call.args.threads = threads;
  const int64_t missed = cascade_topk_cpu(call.args);
  if (missed < 0) throw std::bad_alloc();
  return missed;
}

void cascade_rerank(const Views& views, int dtype, int64_t num_queries, int64_t num_keys,
                    const std::vector<float>& weights, const std::vector<int64_t>& keep, const Listed& listed,
                    const CascadeMasks& masks, const Mined& out, int threads) {
  const py::gil_scoped_release unlocked;
  CascadeCall call(views, dtype, num_queries, num_keys, weights, keep, masks, out);
  call.args.threads = threads;
  if (!cascade_rerank_cpu(rerank_args(call.args, listed))) throw std::bad_alloc();
}

LossArgs on_threads(LossArgs args, int threads) {
  args.threads = threads;
  return args;
}

void enqueue(const Columns& columns, int64_t size, int64_t batch, Address pointer, Address count) {
  const py::gil_scoped_release unlocked;
  const std::vector<Column> list = column_list(columns);
  enqueue_cpu(list.data(), static_cast<int>(list.size()), size, batch, at<int64_t>(pointer),
              at<int64_t>(count));
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "Native kernels of cpr_kernels: raw addresses in, results in place. Use cpr_kernels, not this.";
  m.def("cascade_topk", &cascade_topk, "Returns how many queries took the exhaustive fallback.");
  m.def("cascade_rerank", &cascade_rerank);
  m.def("mil_nce_sweep",
        [](const LossFeatures& features, int dtype, const LossSizes& sizes, const LossLists& lists,
           float temperature, const LossMasks& masks, int siblings, int threads, const LossResults& out) {
          const py::gil_scoped_release unlocked;
          if (!mil_nce_sweep_cpu(
                  on_threads(loss_args(features, dtype, sizes, lists, temperature, masks, siblings), threads),
                  loss_out(out)))
            throw std::bad_alloc();
        });
  m.def("mil_nce_share", [](const LossFeatures& features, int dtype, const LossSizes& sizes,
                            const LossLists& lists, float temperature, const LossMasks& masks, int siblings,
                            int threads, const LossShares& out) {
    const py::gil_scoped_release unlocked;
    const auto& [sums, attended, own, ranks, best] = out;
    LossArgs args =
        on_threads(loss_args(features, dtype, sizes, lists, temperature, masks, siblings), threads);
    args.own = at<const float>(own);
    if (!mil_nce_share_cpu(args, {at<float>(sums), at<float>(attended), at<int32_t>(ranks), at<float>(best)}))
      throw std::bad_alloc();
  });
  m.def("mil_nce_keys_gradient",
        [](const LossFeatures& features, int dtype, const LossSizes& sizes, const LossLists& lists,
           float temperature, const LossMasks& masks, int siblings, int threads, Address grad_loss,
           Address lse_all, Address lse_positive, Address grad_keys) {
          const py::gil_scoped_release unlocked;
          if (!mil_nce_keys_gradient_cpu(
                  on_threads(loss_args(features, dtype, sizes, lists, temperature, masks, siblings), threads),
                  at<const float>(grad_loss), at<const float>(lse_all), at<const float>(lse_positive),
                  at<float>(grad_keys)))
            throw std::bad_alloc();
        });
  m.def("enqueue", &enqueue);
  shard_bindings::bind(m);
  plan_bindings::bind(m);
  fast_cascade::bind(m);
  fast_enqueue::bind(m);
  fast_plan::bind(m);
  m.def("sampled_keys", &sampled_keys,
        "Keys whose scores bracket the thresholds of a queue this long, for tests.");
  m.def(
      "limits",
      [] {
        return std::map<std::string, int64_t>{{"views", MAX_VIEWS},
                                              {"rows", MAX_ROWS},
                                              {"stages", MAX_STAGES},
                                              {"columns", MAX_COLUMNS},
                                              {"list_slack", LIST_SLACK}};
      },
      "What fits the arguments of the CUDA kernels, and the room that lists need beyond their entries.");
  m.def(
      "dtype_codes",
      [] {
        return std::map<std::string, int>{{"float32", static_cast<int>(DType::float32)},
                                          {"bfloat16", static_cast<int>(DType::bfloat16)},
                                          {"float16", static_cast<int>(DType::float16)}};
      },
      "The number of each dtype, by torch's name.");
  m.def("cpu_isas", &cpu_isas, "Instruction sets this machine can run, best first.");
  m.def("cpu_isa", &cpu_isa, "The instruction set in use.");
  m.def("cpu_flops_per_second", &cpu_flops_per_second, pybind11::call_guard<pybind11::gil_scoped_release>(),
        "The float32 rate of so many threads that only multiply and add, best of some tries.");
  m.def("release_workspace", &release_workspace, "Hand back the memory that calls keep for the next one.");
  m.def("use_cpu_isa", &use_cpu_isa, "Switch the instruction set, for tests; False when it cannot run here.");
#ifdef CPR_HAS_CUDA
  cuda_bindings::bind(m);
#endif
}
