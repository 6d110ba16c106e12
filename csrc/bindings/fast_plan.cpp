#include "fast_plan.h"

#include <algorithm>
#include <new>

#include "../plan_steps.h"
#include "fast_cascade.h"

namespace cpr {
namespace {

namespace py = pybind11;

// Rows [B, columns] of a tensor whose rows are contiguous; false for any other tensor.
template <typename T>
bool take_rows(PyObject* given, DlCode code, DlTensor& tensor, Rows<T>& rows) {
  if (!torch_tensors().read(given, tensor) || !holds(tensor, code, 8 * sizeof(T)) || tensor.dims != 2)
    return false;
  rows = {static_cast<T*>(tensor.data), tensor.strides[0]};
  return tensor.shape[1] <= 1 || tensor.strides[1] == 1;
}

// moved, given: tensors [B, R], [B, D]; missing: [B, 1] bool. Returns whether it wrote `moved` and `missing`.
PyObject* unit_rows(PyObject*, PyObject* const* given, Py_ssize_t count) {
  constexpr DlCode BOOLEAN{6};
  UnitArgs args{};
  DlTensor moved, rows, missing;
  if (count != 3 || !take_rows(given[0], DlCode::floating, moved, args.moved)) Py_RETURN_FALSE;
  if (!take_rows(given[1], DlCode::floating, rows, args.given) || rows.shape[0] != moved.shape[0])
    Py_RETURN_FALSE;
  if (!torch_tensors().read(given[2], missing) || !holds(missing, BOOLEAN, 8) || missing.dims != 2)
    Py_RETURN_FALSE;
  if (missing.shape[0] != rows.shape[0] || missing.shape[1] != 1) Py_RETURN_FALSE;
  if (missing.shape[0] > 1 && missing.strides[0] != 1) Py_RETURN_FALSE;
  args.num_rows = rows.shape[0];
  args.given_columns = rows.shape[1];
  args.moved_columns = moved.shape[1];
  args.missing = static_cast<bool*>(missing.data);
  Py_BEGIN_ALLOW_THREADS;
  unit_rows_cpu(args);
  Py_END_ALLOW_THREADS;
  Py_RETURN_TRUE;
}

// The arguments of `expand_rows`; `take` returns false where tensors do not fit together.
struct ExpandCall {
  ExpandArgs args{};

  bool take(PyObject* const* given) {
    DlTensor indices, weights;
    if (!PyList_CheckExact(given[0]) || !PyList_CheckExact(given[1])) return false;
    const Py_ssize_t views = PyList_GET_SIZE(given[0]);
    if (views < 1 || views > MAX_EXPANDED_VIEWS || PyList_GET_SIZE(given[1]) != views) return false;
    if (!take_rows(given[2], DlCode::integer, indices, args.indices)) return false;
    if (!take_rows(given[3], DlCode::floating, weights, args.weights)) return false;
    if (indices.shape[0] != weights.shape[0] || indices.shape[1] != weights.shape[1]) return false;
    args.num_views = static_cast<int>(views);
    args.num_rows = indices.shape[0];
    args.neighbors = indices.shape[1];
    args.threads = static_cast<int>(PyLong_AsLong(given[4]));
    if (PyErr_Occurred()) PyErr_Clear();
    for (Py_ssize_t v = 0; v < views; ++v)
      if (!take_view(v, PyList_GET_ITEM(given[0], v), PyList_GET_ITEM(given[1], v))) return false;
    return true;
  }

  bool take_view(Py_ssize_t v, PyObject* of_rows, PyObject* of_keys) {
    DlTensor rows, keys;
    ExpandedView& view = args.views[v];
    if (!take_rows(of_rows, DlCode::floating, rows, view.rows)) return false;
    if (!take_rows(of_keys, DlCode::floating, keys, view.keys)) return false;
    view.columns = rows.shape[1];
    if (v == 0) args.num_keys = keys.shape[0];
    return rows.shape[0] == args.num_rows && keys.shape[0] == args.num_keys && keys.shape[1] == view.columns;
  }
};

// rows, keys: lists [V] of tensors [B, D_v], [N, D_v]; indices, weights: tensors [B, K]; threads. Returns the
// list of expanded rows, or None to leave it to torch.
PyObject* expand_rows(PyObject*, PyObject* const* given, Py_ssize_t count) {
  ExpandCall call;
  if (count != 5 || !call.take(given)) Py_RETURN_NONE;
  PyObject* const made = PyList_New(call.args.num_views);
  for (int v = 0; made && v < call.args.num_views; ++v) {
    void* data = nullptr;
    PyObject* const out =
        empty_tensor(call.args.num_rows, call.args.views[v].columns, DlCode::floating, data);
    if (!out) {
      Py_DECREF(made);
      return nullptr;
    }
    PyList_SET_ITEM(made, v, out);
    call.args.views[v].out = static_cast<float*>(data);
  }
  if (!made) return nullptr;
  bool fits = false;
  Py_BEGIN_ALLOW_THREADS;
  fits = expand_rows_cpu(call.args);
  Py_END_ALLOW_THREADS;
  if (fits) return made;
  Py_DECREF(made);
  Py_RETURN_NONE;
}

// scores [B, W]: a tensor; how many of each row. Returns the terms [B, 1], or None to leave it to torch.
PyObject* hub_terms(PyObject*, PyObject* const* given, Py_ssize_t count) {
  Rows<const float> scores{};
  DlTensor tensor;
  if (count != 2 || !take_rows(given[0], DlCode::floating, tensor, scores)) Py_RETURN_NONE;
  const int64_t first = PyLong_AsLongLong(given[1]);
  if (PyErr_Occurred()) PyErr_Clear();
  if (first < 1) Py_RETURN_NONE;
  void* data = nullptr;
  PyObject* const terms = empty_tensor(tensor.shape[0], 1, DlCode::floating, data);
  if (terms) {
    Py_BEGIN_ALLOW_THREADS;
    hub_terms_cpu(scores, tensor.shape[0], std::min(first, tensor.shape[1]), static_cast<float*>(data));
    Py_END_ALLOW_THREADS;
  }
  return terms;
}

// Whether the tensors fit together, and `topk` the width.
bool take_hubs(PyObject* const* given, HubArgs& args) {
  DlTensor indices, scores, terms;
  if (!take_rows(given[0], DlCode::integer, indices, args.indices)) return false;
  if (!take_rows(given[1], DlCode::floating, scores, args.scores)) return false;
  if (!torch_tensors().read(given[2], terms) || !holds(terms, DlCode::floating, 32) || terms.dims != 1)
    return false;
  if (terms.shape[0] < 1 || (terms.shape[0] > 1 && terms.strides[0] != 1)) return false;
  if (indices.shape[0] != scores.shape[0] || indices.shape[1] != scores.shape[1]) return false;
  args.num_queries = indices.shape[0];
  args.width = indices.shape[1];
  args.terms = static_cast<const float*>(terms.data);
  args.num_keys = terms.shape[0];
  args.topk = PyLong_AsLongLong(given[3]);
  if (PyErr_Occurred()) PyErr_Clear();
  return args.topk >= 1 && args.topk <= args.width;
}

// indices, scores [B, W]; terms [N]: tensors; topk. Returns (indices, scores) [B, topk], or None to leave it
// to torch.
PyObject* less_hubs(PyObject*, PyObject* const* given, Py_ssize_t count) {
  HubArgs args{};
  if (count != 4 || !take_hubs(given, args)) Py_RETURN_NONE;
  void *indices = nullptr, *scores = nullptr;
  PyObject* const of_indices = empty_tensor(args.num_queries, args.topk, DlCode::integer, indices);
  PyObject* const of_scores =
      of_indices ? empty_tensor(args.num_queries, args.topk, DlCode::floating, scores) : nullptr;
  PyObject* mined = nullptr;
  if (of_scores) {
    args.out_indices = static_cast<int64_t*>(indices);
    args.out_scores = static_cast<float*>(scores);
    try {
      mined = less_hubs_cpu(args) ? PyTuple_Pack(2, of_indices, of_scores) : Py_NewRef(Py_None);
    } catch (const std::bad_alloc&) {
      PyErr_NoMemory();
    }
  }
  Py_XDECREF(of_indices);
  Py_XDECREF(of_scores);
  return mined;
}

}  // namespace

namespace fast_plan {

void bind(py::module_& m) {
  static PyMethodDef methods[] = {
      {"unit_rows_of_tensors", as_method(&unit_rows), METH_FASTCALL,
       "unit_rows_of_tensors(arg0: object, arg1: object, arg2: object) -> bool\n\n"
       "Scales whitened rows to length 1 in place, missing views to zeros, and writes which are missing; "
       "False: nothing was written."},
      {"expand_rows_of_tensors", as_method(&expand_rows), METH_FASTCALL,
       "expand_rows_of_tensors(arg0: list, arg1: list, arg2: object, arg3: object, arg4: int) -> object\n\n"
       "Rows plus their weighted neighbours, on torch's tensors; None: leave it to torch."},
      {"hub_terms_of_tensors", as_method(&hub_terms), METH_FASTCALL,
       "hub_terms_of_tensors(arg0: object, arg1: int) -> object\n\n"
       "The mean of each row's highest scores [B, 1], on torch's tensors; None: leave it to torch."},
      {"less_hubs_of_tensors", as_method(&less_hubs), METH_FASTCALL,
       "less_hubs_of_tensors(arg0: object, arg1: object, arg2: object, arg3: int) -> object\n\n"
       "Neighbours ranked anew less their hub terms, on torch's tensors; None: leave it to torch."},
      {nullptr, nullptr, 0, nullptr}};
  if (PyModule_AddFunctions(m.ptr(), methods) != 0) throw py::error_already_set();
}

}  // namespace fast_plan
}  // namespace cpr
