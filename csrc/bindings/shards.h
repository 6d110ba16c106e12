// Bindings for queues that several processes share.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <new>
#include <tuple>
#include <vector>

#include "../shard.h"
#include "arguments.h"

namespace cpr {
namespace shard_bindings {

namespace py = pybind11;
using Lists = std::tuple<Address, Address, Address, int64_t, int, int64_t>;

// lists: (scores, index, length, queries, rows, pitch).
inline EntryLists entry_lists(const Lists& lists, int threads) {
  const auto& [scores, index, length, queries, rows, pitch] = lists;
  return {at<float>(scores), at<int32_t>(index), at<int64_t>(length), queries, rows, pitch, threads};
}

inline void collect_entries(const Views& views, int dtype, int64_t num_keys,
                            const std::vector<float>& weights, const CascadeMasks& masks, const Lists& lists,
                            int threads) {
  const py::gil_scoped_release unlocked;
  const EntryLists out = entry_lists(lists, threads);
  const std::vector<int64_t> keep(static_cast<size_t>(out.rows), 1);
  CascadeCall call(views, dtype, out.num_queries, num_keys, weights, keep, masks);
  call.args.threads = threads;
  if (!collect_entries_cpu(call.args, out)) throw std::bad_alloc();
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

}  // namespace shard_bindings
}  // namespace cpr
