// The part of the door for queues that several processes share.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <new>
#include <tuple>
#include <vector>

#include "shard.h"

namespace cpr {
namespace shard_door {

namespace py = pybind11;
using Address = std::uintptr_t;
using Views = std::vector<std::tuple<Address, int64_t, Address, int64_t, int64_t>>;
using Lists = std::tuple<Address, Address, Address, int64_t, int, int64_t>;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// lists: (scores, index, length, queries, rows, pitch).
inline EntryLists entry_lists(const Lists& lists, int threads) {
  const auto& [scores, index, length, queries, rows, pitch] = lists;
  return {at<float>(scores), at<int32_t>(index), at<int64_t>(length), queries, rows, pitch, threads};
}

// views: (queries, query stride, keys, key stride, D) each; masks: (query ids, key ids, exclude, its stride).
inline void collect_entries(const Views& views, int dtype, int64_t num_keys,
                            const std::vector<float>& weights,
                            const std::tuple<Address, Address, Address, int64_t>& masks, const Lists& lists,
                            int threads) {
  const py::gil_scoped_release unlocked;
  const EntryLists out = entry_lists(lists, threads);
  std::vector<View> list;
  for (const auto& [queries, query_stride, keys, key_stride, dim] : views)
    list.push_back({at<const void>(queries), at<const void>(keys), query_stride, key_stride, dim});
  const std::vector<int64_t> keep(static_cast<size_t>(out.rows), 1);
  CascadeArgs args{};
  args.views = list.data();
  args.num_views = static_cast<int>(list.size());
  args.dtype = static_cast<DType>(dtype);
  args.num_queries = out.num_queries;
  args.num_keys = num_keys;
  args.weights = weights.data();
  args.keep = keep.data();
  args.num_stages = out.rows;
  args.query_ids = at<const int64_t>(std::get<0>(masks));
  args.key_ids = at<const int64_t>(std::get<1>(masks));
  args.exclude = at<const uint8_t>(std::get<2>(masks));
  args.exclude_stride = std::get<3>(masks);
  args.threads = threads;
  if (!collect_entries_cpu(args, out)) throw std::bad_alloc();
}

// digit: (shift, bits, step); matching: (keys, their number).
inline void count_digits(const Lists& lists, int row, Address prefix, const std::tuple<int, int, int>& digit,
                         const std::tuple<Address, Address>& matching, Address counts, int threads) {
  const py::gil_scoped_release unlocked;
  const auto& [shift, bits, step] = digit;
  const auto& [keys, matches] = matching;
  count_digits_cpu(entry_lists(lists, threads), row,
                   {at<const int32_t>(prefix), shift, bits, step, at<uint32_t>(keys), at<int64_t>(matches)},
                   at<int32_t>(counts));
}

inline void keep_above(const Lists& lists, int row, Address cut, Address ties, int threads) {
  const py::gil_scoped_release unlocked;
  keep_above_cpu(entry_lists(lists, threads), row, at<const int32_t>(cut), at<const int32_t>(ties));
}

inline void bind(py::module_& m) {
  m.def("collect_entries", &collect_entries);
  m.def("count_digits", &count_digits);
  m.def("keep_above", &keep_above);
}

}  // namespace shard_door
}  // namespace cpr
