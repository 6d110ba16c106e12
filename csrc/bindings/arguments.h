// Python arguments as kernel structs: what all bindings share.
#pragma once
#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "../cascade_rerank.h"
#include "../cascade_topk.h"
#include "../enqueue.h"
#include "../mil_nce.h"
#include "../weightings.h"

namespace cpr {

using Address = std::uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// (queries, query stride, keys, key stride, D) each.
using Views = std::vector<std::tuple<Address, int64_t, Address, int64_t, int64_t>>;
// query ids, key ids, exclude, its stride, key bias
using CascadeMasks = std::tuple<Address, Address, Address, int64_t, Address>;
using Mined = std::tuple<Address, Address>;  // indices, scores

// CascadeArgs with the list of views that they point to; weights and counts stay the caller's. Refuses
// numbers with which kernels would leave their memory.
struct CascadeCall {
  std::vector<View> views;
  CascadeArgs args{};

  CascadeCall(const Views& given, int dtype, int64_t num_queries, int64_t num_keys,
              const std::vector<float>& weights, const std::vector<int64_t>& keep,
              const CascadeMasks& masks = {}, const Mined& out = {}) {
    const int stages = static_cast<int>(keep.size()), num_views = static_cast<int>(given.size());
    if (weights.size() != keep.size() * given.size() || !are_stage_weights(weights.data(), stages, num_views))
      throw std::invalid_argument(
          "weights must be [S, V], each 0 or a normal float32 number, no stage all 0");
    if (keep.empty() || keep.back() < 1 || !std::is_sorted(keep.rbegin(), keep.rend()))
      throw std::invalid_argument(
          "keep must hold at least one count, each >= 1 and none above the one before");
    for (const auto& [queries, query_stride, keys, key_stride, dim] : given)
      views.push_back({at<const void>(queries), at<const void>(keys), query_stride, key_stride, dim});
    args.views = views.data();
    args.num_views = num_views;
    args.dtype = static_cast<DType>(dtype);
    args.num_queries = num_queries;
    args.num_keys = num_keys;
    args.weights = weights.data();
    args.keep = keep.data();
    args.num_stages = stages;
    args.query_ids = at<const int64_t>(std::get<0>(masks));
    args.key_ids = at<const int64_t>(std::get<1>(masks));
    args.exclude = at<const uint8_t>(std::get<2>(masks));
    args.exclude_stride = std::get<3>(masks);
    args.key_bias = at<const float>(std::get<4>(masks));
    args.indices = at<int64_t>(std::get<0>(out));
    args.scores = at<float>(std::get<1>(out));
  }
  CascadeCall(const CascadeCall&) = delete;  // args point into views
  CascadeCall& operator=(const CascadeCall&) = delete;
};

using Listed = std::tuple<Address, int64_t, int64_t>;  // candidates, C, stride

inline RerankArgs rerank_args(const CascadeArgs& cascade, const Listed& listed) {
  return {cascade, at<const int64_t>(std::get<0>(listed)), std::get<1>(listed), std::get<2>(listed)};
}

using LossFeatures =
    std::tuple<Address, int64_t, Address, int64_t, Address, int64_t>;       // query, positive, keys; strides
using LossSizes = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>;  // B, N, D, P, M
using LossLists = std::tuple<Address, Address>;                             // positives, negatives
using LossMasks = std::tuple<Address, Address, Address>;                    // query ids, key ids, use own

inline LossArgs loss_args(const LossFeatures& features, int dtype, const LossSizes& sizes,
                          const LossLists& lists, float temperature, const LossMasks& masks, int siblings) {
  LossArgs args{};
  const auto& [query, query_stride, positive, positive_stride, keys, key_stride] = features;
  args.query = at<const void>(query);
  args.positive = at<const void>(positive);
  args.keys = at<const void>(keys);
  args.query_stride = query_stride;
  args.positive_stride = positive_stride;
  args.key_stride = key_stride;
  std::tie(args.num_queries, args.num_keys, args.dim, args.num_positives, args.num_negatives) = sizes;
  args.dtype = static_cast<DType>(dtype);
  args.positives = at<const int64_t>(std::get<0>(lists));
  args.negatives = at<const int64_t>(std::get<1>(lists));
  args.temperature = temperature;
  args.query_ids = at<const int64_t>(std::get<0>(masks));
  args.key_ids = at<const int64_t>(std::get<1>(masks));
  args.use_own = at<const uint8_t>(std::get<2>(masks));
  args.siblings = siblings;
  return args;
}

// loss, both lses, own weight, query gradient, statistics
using LossResults = std::tuple<Address, Address, Address, Address, Address, Address>;

inline LossOut loss_out(const LossResults& out) {
  const auto& [loss, lse_all, lse_positive, own_weight, grad_query, stats] = out;
  return {at<float>(loss),       at<float>(lse_all),    at<float>(lse_positive),
          at<float>(own_weight), at<float>(grad_query), at<int64_t>(stats)};
}

// sums, attended, own scores, ranks, best; the last three 0 without statistics
using LossShares = std::tuple<Address, Address, Address, Address, Address>;

using Columns = Views;  // buffer, stride in bytes, rows, stride in bytes, bytes a row

inline std::vector<Column> column_list(const Columns& columns) {
  std::vector<Column> list;
  for (const auto& [buffer, buffer_stride, rows, rows_stride, row_bytes] : columns)
    list.push_back({at<char>(buffer), at<const char>(rows), row_bytes, buffer_stride, rows_stride});
  return list;
}

}  // namespace cpr
