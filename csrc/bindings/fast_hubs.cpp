#include "fast_hubs.h"

#include <new>

#include "../less_hubs.h"
#include "fast_cascade.h"

namespace cpr {
namespace {

namespace py = pybind11;

bool take_rows(PyObject* given, DlCode code, int bits, DlTensor& rows) {
  if (!torch_tensors().read(given, rows) || !holds(rows, code, bits) || rows.dims != 2) return false;
  return rows.shape[1] <= 1 || rows.strides[1] == 1;
}

// Whether the tensors fit together, and `topk` the width.
bool take(PyObject* const* given, HubArgs& args) {
  DlTensor indices, scores, terms;
  if (!take_rows(given[0], DlCode::integer, 64, indices) || !take_rows(given[1], DlCode::floating, 32, scores))
    return false;
  if (!torch_tensors().read(given[2], terms) || !holds(terms, DlCode::floating, 32) || terms.dims != 1)
    return false;
  if (terms.shape[0] < 1 || (terms.shape[0] > 1 && terms.strides[0] != 1)) return false;
  if (indices.shape[0] != scores.shape[0] || indices.shape[1] != scores.shape[1]) return false;
  args.indices = static_cast<const int64_t*>(indices.data);
  args.scores = static_cast<const float*>(scores.data);
  args.indices_stride = indices.strides[0];
  args.scores_stride = scores.strides[0];
  args.num_queries = indices.shape[0];
  args.width = indices.shape[1];
  args.terms = static_cast<const float*>(terms.data);
  args.num_keys = terms.shape[0];
  args.topk = PyLong_AsLongLong(given[3]);
  if (PyErr_Occurred()) PyErr_Clear();
  return args.topk >= 1 && args.topk <= args.width;
}

// indices, scores [B, W]; terms [N]: tensors; topk. Returns (indices, scores) [B, topk], or None to leave it to torch.
PyObject* less_hubs(PyObject*, PyObject* const* given, Py_ssize_t count) {
  HubArgs args{};
  if (count != 4 || !take(given, args)) Py_RETURN_NONE;
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

namespace fast_hubs {

void bind(py::module_& m) {
  static PyMethodDef methods[] = {
      {"less_hubs_of_tensors", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&less_hubs)),
       METH_FASTCALL,
       "less_hubs_of_tensors(arg0: object, arg1: object, arg2: object, arg3: int) -> object\n\nNeighbours ranked "
       "anew less their hub terms, on torch's tensors; None: leave it to torch."},
      {nullptr, nullptr, 0, nullptr}};
  if (PyModule_AddFunctions(m.ptr(), methods) != 0) throw py::error_already_set();
}

}  // namespace fast_hubs
}  // namespace cpr
