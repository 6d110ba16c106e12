// The only door to the core: addresses, sizes and strides in, results written in place. The GIL is released.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <new>
#include <vector>

#include "cascade_rerank.h"
#include "cascade_topk.h"
#include "cpu/workspace.h"
#include "cpu_info.h"
#include "enqueue.h"
#include "mil_nce.h"
#include "plan_bindings.h"
#include "shard_bindings.h"
#ifdef CPR_HAS_CUDA
#include "cuda/bindings.h"
#endif

namespace py = pybind11;
using Address = std::uintptr_t;

namespace {

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

using Views = std::vector<std::tuple<Address, int64_t, Address, int64_t, int64_t>>;

std::vector<cpr::View> view_list(const Views& views) {
  std::vector<cpr::View> list;
  for (const auto& [queries, query_stride, keys, key_stride, dim] : views)
    list.push_back({at<const void>(queries), at<const void>(keys), query_stride, key_stride, dim});
  return list;
}

// views: (queries, query stride, keys, key stride, D) each.
std::int64_t cascade_topk(const Views& views, int dtype, int64_t num_queries, int64_t num_keys,
                          const std::vector<float>& weights, const std::vector<int64_t>& keep,
                          Address query_ids, Address key_ids, Address exclude, int64_t exclude_stride,
                          Address indices, Address scores, int threads) {
  const py::gil_scoped_release unlocked;
  const std::vector<cpr::View> list = view_list(views);
  cpr::CascadeArgs args{};
  args.views = list.data();
  args.num_views = static_cast<int>(list.size());
  args.dtype = static_cast<cpr::DType>(dtype);
  args.num_queries = num_queries;
  args.num_keys = num_keys;
  args.weights = weights.data();
  args.keep = keep.data();
  args.num_stages = static_cast<int>(keep.size());
  args.query_ids = at<const int64_t>(query_ids);
  args.key_ids = at<const int64_t>(key_ids);
  args.exclude = at<const uint8_t>(exclude);
  args.exclude_stride = exclude_stride;
  args.indices = at<int64_t>(indices);
  args.scores = at<float>(scores);
  args.threads = threads;
  const int64_t missed = cpr::cascade_topk_cpu(args);
  if (missed < 0) throw std::bad_alloc();
  return missed;
}

// candidates: (address, C, stride); masks: (query ids, key ids, exclude, its stride); out: (indices, scores).
void cascade_rerank(const Views& views, int dtype, int64_t num_queries, int64_t num_keys,
                    const std::vector<float>& weights, const std::vector<int64_t>& keep,
                    const std::tuple<Address, int64_t, int64_t>& candidates,
                    const std::tuple<Address, Address, Address, int64_t>& masks,
                    const std::tuple<Address, Address>& out, int threads) {
  const py::gil_scoped_release unlocked;
  const std::vector<cpr::View> list = view_list(views);
  cpr::RerankArgs args{};
  cpr::CascadeArgs& cascade = args.cascade;
  cascade.views = list.data();
  cascade.num_views = static_cast<int>(list.size());
  cascade.dtype = static_cast<cpr::DType>(dtype);
  cascade.num_queries = num_queries;
  cascade.num_keys = num_keys;
  cascade.weights = weights.data();
  cascade.keep = keep.data();
  cascade.num_stages = static_cast<int>(keep.size());
  cascade.query_ids = at<const int64_t>(std::get<0>(masks));
  cascade.key_ids = at<const int64_t>(std::get<1>(masks));
  cascade.exclude = at<const uint8_t>(std::get<2>(masks));
  cascade.exclude_stride = std::get<3>(masks);
  cascade.indices = at<int64_t>(std::get<0>(out));
  cascade.scores = at<float>(std::get<1>(out));
  cascade.threads = threads;
  args.candidates = at<const int64_t>(std::get<0>(candidates));
  args.num_candidates = std::get<1>(candidates);
  args.candidates_stride = std::get<2>(candidates);
  if (!cpr::cascade_rerank_cpu(args)) throw std::bad_alloc();
}

cpr::LossArgs loss_args(const std::tuple<Address, int64_t, Address, int64_t, Address, int64_t>& features,
                        int dtype, const std::tuple<int64_t, int64_t, int64_t, int64_t>& sizes,
                        Address positives, float temperature,
                        const std::tuple<Address, Address, Address>& masks, int siblings, int threads) {
  cpr::LossArgs args{};
  const auto& [query, query_stride, positive, positive_stride, keys, key_stride] = features;
  args.query = at<const void>(query);
  args.positive = at<const void>(positive);
  args.keys = at<const void>(keys);
  args.query_stride = query_stride;
  args.positive_stride = positive_stride;
  args.key_stride = key_stride;
  std::tie(args.num_queries, args.num_keys, args.dim, args.num_positives) = sizes;
  args.dtype = static_cast<cpr::DType>(dtype);
  args.positives = at<const int64_t>(positives);
  args.temperature = temperature;
  args.query_ids = at<const int64_t>(std::get<0>(masks));
  args.key_ids = at<const int64_t>(std::get<1>(masks));
  args.use_own = at<const uint8_t>(std::get<2>(masks));
  args.siblings = siblings;
  args.threads = threads;
  return args;
}

void enqueue(const std::vector<std::tuple<Address, int64_t, Address, int64_t, int64_t>>& columns,
             int64_t size, int64_t batch, Address pointer, Address count) {
  const py::gil_scoped_release unlocked;
  std::vector<cpr::Column> list;
  for (const auto& [buffer, buffer_stride, rows, rows_stride, row_bytes] : columns)
    list.push_back({at<char>(buffer), at<const char>(rows), row_bytes, buffer_stride, rows_stride});
  cpr::enqueue_cpu(list.data(), static_cast<int>(list.size()), size, batch, at<int64_t>(pointer),
                   at<int64_t>(count));
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "Native kernels of cpr_kernels: raw addresses in, results in place. Use cpr_kernels, not this.";
  m.def("cascade_topk", &cascade_topk, "Returns how many queries were selected the long way.");
  m.def("cascade_rerank", &cascade_rerank);
  m.def("mil_nce_sweep",
        [](const std::tuple<Address, int64_t, Address, int64_t, Address, int64_t>& features, int dtype,
           const std::tuple<int64_t, int64_t, int64_t, int64_t>& sizes, Address positives, float temperature,
           const std::tuple<Address, Address, Address>& masks, int siblings, int threads,
           const std::tuple<Address, Address, Address, Address, Address>& out) {
          const py::gil_scoped_release unlocked;
          const auto& [loss, lse_all, lse_positive, own_weight, grad_query] = out;
          if (!cpr::mil_nce_sweep_cpu(
                  loss_args(features, dtype, sizes, positives, temperature, masks, siblings, threads),
                  {at<float>(loss), at<float>(lse_all), at<float>(lse_positive), at<float>(own_weight),
                   at<float>(grad_query)}))
            throw std::bad_alloc();
        });
  m.def("mil_nce_share",
        [](const std::tuple<Address, int64_t, Address, int64_t, Address, int64_t>& features, int dtype,
           const std::tuple<int64_t, int64_t, int64_t, int64_t>& sizes, Address positives, float temperature,
           const std::tuple<Address, Address, Address>& masks, int siblings, int threads, Address sums,
           Address attended) {
          const py::gil_scoped_release unlocked;
          if (!cpr::mil_nce_share_cpu(
                  loss_args(features, dtype, sizes, positives, temperature, masks, siblings, threads),
                  {at<float>(sums), at<float>(attended)}))
            throw std::bad_alloc();
        });
  m.def("mil_nce_keys_gradient",
        [](const std::tuple<Address, int64_t, Address, int64_t, Address, int64_t>& features, int dtype,
           const std::tuple<int64_t, int64_t, int64_t, int64_t>& sizes, Address positives, float temperature,
           const std::tuple<Address, Address, Address>& masks, int siblings, int threads, Address grad_loss,
           Address lse_all, Address lse_positive, Address grad_keys) {
          const py::gil_scoped_release unlocked;
          if (!cpr::mil_nce_keys_gradient_cpu(
                  loss_args(features, dtype, sizes, positives, temperature, masks, siblings, threads),
                  at<const float>(grad_loss), at<const float>(lse_all), at<const float>(lse_positive),
                  at<float>(grad_keys)))
            throw std::bad_alloc();
        });
  m.def("enqueue", &enqueue);
  cpr::shard_door::bind(m);
  cpr::plan_door::bind(m);
  m.def("sampled_keys", &cpr::sampled_keys,
        "Keys whose scores bracket the thresholds of a queue this long, for tests.");
  m.def("cpu_isas", &cpr::cpu_isas, "Instruction sets this machine can run, best first.");
  m.def("cpu_isa", &cpr::cpu_isa, "The instruction set in use.");
  m.def("cpu_flops_per_second", &cpr::cpu_flops_per_second,
        pybind11::call_guard<pybind11::gil_scoped_release>(),
        "The float32 rate of so many threads that only multiply and add, best of some tries.");
  m.def("release_workspace", &cpr::release_workspace,
        "Hand back the memory that calls keep for the next one.");
  m.def("use_cpu_isa", &cpr::use_cpu_isa,
        "Switch the instruction set, for tests; False when it cannot run here.");
#ifdef CPR_HAS_CUDA
  cpr::cuda_door::bind(m);
#endif
}
