// The CUDA bindings: `cuda_...` functions, there only when the kernels were built. Work is queued on
// the stream given; nothing is waited for.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <tuple>
#include <vector>

#include "../cuda/device/device_limits.h"
#include "../cuda/device/info.h"
#include "../cuda/device/tuning.h"
#include "arguments.h"

namespace cpr {
namespace cuda_bindings {

namespace py = pybind11;

inline void check(const char* error) {
  if (error) throw std::runtime_error(std::string("cpr_kernels, CUDA: ") + error);
}

inline void bind_loss(py::module_& m) {
  m.def(
      "cuda_mil_nce_workspace",
      [](const LossFeatures& features, int dtype, const LossSizes& sizes, const LossLists& lists,
         float temperature, const LossMasks& masks, int siblings, bool sweep, bool gradient, bool stats) {
        int64_t bytes = 0;
        check(mil_nce_cuda_workspace(loss_args(features, dtype, sizes, lists, temperature, masks, siblings),
                                     sweep, gradient, stats, &bytes));
        return bytes;
      },
      "Bytes of workspace that cuda_mil_nce_sweep (sweep=True) or cuda_mil_nce_keys_gradient needs.");
  m.def("cuda_mil_nce_sweep",
        [](const LossFeatures& features, int dtype, const LossSizes& sizes, const LossLists& lists,
           float temperature, const LossMasks& masks, int siblings, const LossResults& out, Address workspace,
           int64_t bytes, Address stream) {
          check(mil_nce_sweep_cuda(loss_args(features, dtype, sizes, lists, temperature, masks, siblings),
                                   loss_out(out), at<void>(workspace), bytes, at<void>(stream)));
        });
  m.def("cuda_mil_nce_keys_gradient", [](const LossFeatures& features, int dtype, const LossSizes& sizes,
                                         const LossLists& lists, float temperature, const LossMasks& masks,
                                         int siblings,
                                         const std::tuple<Address, Address, Address, Address>& given,
                                         Address workspace, int64_t bytes, Address stream) {
    const auto& [grad_loss, lse_all, lse_positive, grad_keys] = given;
    check(mil_nce_keys_gradient_cuda(loss_args(features, dtype, sizes, lists, temperature, masks, siblings),
                                     at<const float>(grad_loss), at<const float>(lse_all),
                                     at<const float>(lse_positive), at<float>(grad_keys), at<void>(workspace),
                                     bytes, at<void>(stream)));
  });
}

inline void bind(py::module_& m) {
  bind_loss(m);
  m.def("cuda_unavailable", &cuda_unavailable, "Why no CUDA device can be used, or an empty string.");
  m.def(
      "cuda_use_device", [](int index) { check(use_device(index)); },
      "Make a device the current one of this thread.");
  m.def(
      "cuda_limits",
      [] {
        const DeviceLimits limits = limits_of_current_device();
        return std::make_tuple(limits.capability, limits.shared_bytes, limits.cache_bytes,
                               limits.clusters_of_16);
      },
      "Of the current device: compute capability (90 for 9.0), shared memory a block may have, L2 bytes, and "
      "whether it has clusters of 16 blocks.");
  m.def(
      "cuda_tune",
      [](int64_t sweep, int score_queries, int select_threads, bool early_start, int wgmma_parts,
         int key_splits) {
        if (score_queries != 0 && score_queries != 16 && score_queries != 64 && score_queries != 128)
          throw std::invalid_argument("score_queries must be 0, 16, 64 or 128");
        if (select_threads != 0 && select_threads != 256 && select_threads != 512 && select_threads != 1024)
          throw std::invalid_argument("select_threads must be 0, 256, 512 or 1024");
        tuning() = {sweep, score_queries, select_threads, early_start, wgmma_parts, key_splits};
      },
      py::kw_only(), py::arg("sweep") = 0, py::arg("score_queries") = 0, py::arg("select_threads") = 0,
      py::arg("early_start") = false, py::arg("wgmma_parts") = -1, py::arg("key_splits") = -1,
      "Choices for experiments (csrc/cuda/tuning.h); without arguments, the planner's rules again.");
  m.def(
      "cuda_cascade_topk_workspace",
      [](const Views& views, int dtype, int64_t num_queries, int64_t num_keys,
         const std::vector<float>& weights, const std::vector<int64_t>& keep, const CascadeMasks& masks,
         const Mined& out) {
        int64_t bytes = 0;
        check(cascade_topk_cuda_workspace(
            CascadeCall(views, dtype, num_queries, num_keys, weights, keep, masks, out).args, &bytes));
        return bytes;
      },
      "Bytes of workspace that cuda_cascade_topk needs for these arguments.");
  m.def("cuda_cascade_topk",
        [](const Views& views, int dtype, int64_t num_queries, int64_t num_keys,
           const std::vector<float>& weights, const std::vector<int64_t>& keep, const CascadeMasks& masks,
           const Mined& out, Address workspace, int64_t bytes, Address stream) {
          const CascadeCall call(views, dtype, num_queries, num_keys, weights, keep, masks, out);
          const char* error;
          {
            const py::gil_scoped_release unlocked;
            error = cascade_topk_cuda(call.args, at<void>(workspace), bytes, at<void>(stream));
          }
          check(error);
        });
  m.def(
      "cuda_cascade_rerank_workspace",
      [](const Views& views, int dtype, int64_t num_queries, int64_t num_keys,
         const std::vector<float>& weights, const std::vector<int64_t>& keep, const Listed& listed,
         const CascadeMasks& masks, const Mined& out) {
        const CascadeCall call(views, dtype, num_queries, num_keys, weights, keep, masks, out);
        int64_t bytes = 0;
        check(cascade_rerank_cuda_workspace(rerank_args(call.args, listed), &bytes));
        return bytes;
      },
      "Bytes of workspace that cuda_cascade_rerank needs for these arguments.");
  m.def("cuda_cascade_rerank", [](const Views& views, int dtype, int64_t num_queries, int64_t num_keys,
                                  const std::vector<float>& weights, const std::vector<int64_t>& keep,
                                  const Listed& listed, const CascadeMasks& masks, const Mined& out,
                                  Address workspace, int64_t bytes, Address stream) {
    const CascadeCall call(views, dtype, num_queries, num_keys, weights, keep, masks, out);
    const py::gil_scoped_release unlocked;
    check(cascade_rerank_cuda(rerank_args(call.args, listed), at<void>(workspace), bytes, at<void>(stream)));
  });
  m.def("cuda_enqueue", [](const Columns& columns, int64_t size, int64_t batch, Address pointer,
                           Address count, Address stream) {
    const std::vector<Column> list = column_list(columns);
    check(enqueue_cuda(list.data(), static_cast<int>(list.size()), size, batch, at<int64_t>(pointer),
                       at<int64_t>(count), at<void>(stream)));
  });
}

}  // namespace cuda_bindings
}  // namespace cpr
