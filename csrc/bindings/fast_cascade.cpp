#include "fast_cascade.h"

#include <array>
#include <limits>
#include <new>

#include "../cascade_topk.h"
#include "../weightings.h"

namespace cpr {
namespace {

namespace py = pybind11;

constexpr Py_ssize_t MAX_VIEWS = 8, MAX_STAGES = 32;  // more fall back to the dispatcher
constexpr int64_t MAX_ENTRIES = std::numeric_limits<int32_t>::max(), MAX_KEEP = int64_t{1} << 62;

// What `connect_torch` was given, for the process's lifetime.
struct Torch {
  TorchTensors tensors;
  PyObject *empty, *int64, *float32, *cpu, *names;  // names: of torch.empty's keywords
};
Torch torch;

bool connect_torch(py::handle tensor_type, py::handle empty, py::handle int64, py::handle float32,
                   py::handle cpu) {
  for (const py::handle& held : {empty, int64, float32, cpu}) held.inc_ref();
  torch = {{},          empty.ptr(),
           int64.ptr(), float32.ptr(),
           cpu.ptr(),   py::make_tuple("dtype", "device").release().ptr()};
  return torch.tensors.connect(tensor_type);
}

// torch.empty(rows, columns, dtype=dtype, device=cpu), and where its elements are; null with a Python error.
PyObject* empty(PyObject* rows, PyObject* columns, PyObject* dtype, void*& data) {
  PyObject* const given[] = {rows, columns, dtype, torch.cpu};
  PyObject* const made = PyObject_Vectorcall(torch.empty, given, 2, torch.names);
  DlTensor tensor{};
  if (made && !torch.tensors.read(made, tensor)) {
    PyErr_SetString(PyExc_RuntimeError, "cascade_topk: torch.empty made no plain tensor");
    Py_DECREF(made);
    return nullptr;
  }
  data = tensor.data;
  return made;
}

// A call whose tensors were read in place. `take...` return false to fall back to the dispatcher: something
// does not fit, or has no unit inner stride.
struct FastCall {
  std::array<View, MAX_VIEWS> views;
  std::array<float, MAX_VIEWS * MAX_STAGES> weights;  // [S, V]
  std::array<int64_t, MAX_STAGES> keep;
  CascadeArgs args{};

  bool take_view(Py_ssize_t v, PyObject* of_queries, PyObject* of_keys) {
    DlTensor query, key;
    DType dtype, key_dtype;
    if (!torch.tensors.read(of_queries, query) || !torch.tensors.read(of_keys, key)) return false;
    if (query.dims != 2 || key.dims != 2 || query.shape[1] != key.shape[1]) return false;
    if (!feature_dtype(query, dtype) || !feature_dtype(key, key_dtype) || dtype != key_dtype) return false;
    for (const DlTensor* rows : {&query, &key})
      if (rows->strides[1] != 1 && rows->shape[1] > 1) return false;
    if (v == 0) {
      args.dtype = dtype;
      args.num_queries = query.shape[0];
      args.num_keys = key.shape[0];
    }
    views[static_cast<size_t>(v)] = {query.data, key.data, query.strides[0], key.strides[0], query.shape[1]};
    return dtype == args.dtype && query.shape[0] == args.num_queries && key.shape[0] == args.num_keys &&
           args.num_keys <= MAX_ENTRIES;
  }

  // Whether the numbers are as kernels need them: every stage weighs some view in float32, counts do not
  // grow.
  bool numbers_fit() const {
    int64_t most = MAX_KEEP;
    for (int s = 0; s < args.num_stages; ++s) {
      const int64_t count = keep[static_cast<size_t>(s)];
      if (count < 1 || count > most) return false;
      most = count;
    }
    return are_stage_weights(args.weights, args.num_stages, args.num_views);
  }

  // Lists of tensors, tuples of the schedule's numbers.
  bool take_views(PyObject* of_queries, PyObject* of_keys, PyObject* of_weights, PyObject* counts) {
    if (!PyList_CheckExact(of_queries) || !PyList_CheckExact(of_keys) || !PyTuple_CheckExact(of_weights) ||
        !PyTuple_CheckExact(counts))
      return false;
    const Py_ssize_t V = PyList_GET_SIZE(of_queries), S = PyTuple_GET_SIZE(counts);
    if (V < 1 || V > MAX_VIEWS || S < 1 || S > MAX_STAGES) return false;
    if (PyList_GET_SIZE(of_keys) != V || PyTuple_GET_SIZE(of_weights) != S * V) return false;
    for (Py_ssize_t v = 0; v < V; ++v)
      if (!take_view(v, PyList_GET_ITEM(of_queries, v), PyList_GET_ITEM(of_keys, v))) return false;
    for (Py_ssize_t i = 0; i < S * V; ++i)
      weights[static_cast<size_t>(i)] = static_cast<float>(PyFloat_AsDouble(PyTuple_GET_ITEM(of_weights, i)));
    for (Py_ssize_t s = 0; s < S; ++s)
      keep[static_cast<size_t>(s)] = PyLong_AsLongLong(PyTuple_GET_ITEM(counts, s));
    if (PyErr_Occurred()) {
      PyErr_Clear();
      return false;
    }
    args.views = views.data();
    args.num_views = static_cast<int>(V);
    args.weights = weights.data();
    args.keep = keep.data();
    args.num_stages = static_cast<int>(S);
    return numbers_fit();
  }

  bool take_ids(PyObject* given, int64_t length, const int64_t*& ids) {
    if (given == Py_None) return true;
    DlTensor tensor;
    if (!torch.tensors.read(given, tensor) || !holds(tensor, DlCode::integer, 64)) return false;
    if (tensor.dims != 1 || tensor.shape[0] != length || (length > 1 && tensor.strides[0] != 1)) return false;
    ids = static_cast<const int64_t*>(tensor.data);
    return true;
  }

  bool take_bias(PyObject* given) {
    if (given == Py_None) return true;
    DlTensor tensor;
    if (!torch.tensors.read(given, tensor) || !holds(tensor, DlCode::floating, 32)) return false;
    if (tensor.dims != 1 || tensor.shape[0] != args.num_keys) return false;
    args.key_bias = static_cast<const float*>(tensor.data);
    return args.num_keys <= 1 || tensor.strides[0] == 1;
  }
};

// queries, keys: lists [V]; stage_weights [S * V], stage_keep [S]: tuples; query_ids, key_ids, key_bias:
// tensors or None; threads. Returns (indices, scores), or None to fall back to the dispatcher.
PyObject* cascade_topk(PyObject*, PyObject* const* given, Py_ssize_t count) {
  FastCall call;
  if (count != 8 || !call.take_views(given[0], given[1], given[2], given[3])) Py_RETURN_NONE;
  CascadeArgs& args = call.args;
  const bool ids_fit = call.take_ids(given[4], args.num_queries, args.query_ids) &&
                       call.take_ids(given[5], args.num_keys, args.key_ids);
  if (!ids_fit || !call.take_bias(given[6]) || (given[4] != Py_None && given[5] == Py_None)) Py_RETURN_NONE;
  args.threads = static_cast<int>(PyLong_AsLong(given[7]));

  void *indices = nullptr, *scores = nullptr;
  PyObject* const rows = PyLong_FromLongLong(args.num_queries);
  PyObject* const columns = PyTuple_GET_ITEM(given[3], args.num_stages - 1);
  PyObject* const of_indices = rows ? empty(rows, columns, torch.int64, indices) : nullptr;
  PyObject* const of_scores = of_indices ? empty(rows, columns, torch.float32, scores) : nullptr;
  Py_XDECREF(rows);
  int64_t missed = of_scores ? 0 : -1;
  if (of_scores) {
    args.indices = static_cast<int64_t*>(indices);
    args.scores = static_cast<float*>(scores);
    Py_BEGIN_ALLOW_THREADS;
    try {
      missed = cascade_topk_cpu(args);
    } catch (const std::bad_alloc&) {
      missed = -1;
    }
    Py_END_ALLOW_THREADS;
    if (missed < 0) PyErr_NoMemory();
  }
  PyObject* const mined = missed < 0 ? nullptr : PyTuple_Pack(2, of_indices, of_scores);
  Py_XDECREF(of_indices);
  Py_XDECREF(of_scores);
  return mined;
}

// Whether each is None or a tensor that kernels may read in place (TorchTensors::read).
PyObject* are_plain(PyObject*, PyObject* const* given, Py_ssize_t count) {
  DlTensor tensor;
  for (Py_ssize_t i = 0; i < count; ++i)
    if (given[i] != Py_None && !torch.tensors.read(given[i], tensor)) Py_RETURN_FALSE;
  Py_RETURN_TRUE;
}

}  // namespace

const TorchTensors& torch_tensors() { return torch.tensors; }

PyObject* empty_tensor(int64_t rows, int64_t columns, DlCode code, void*& data) {
  PyObject* const of_rows = PyLong_FromLongLong(rows);
  PyObject* const of_columns = of_rows ? PyLong_FromLongLong(columns) : nullptr;
  PyObject* const dtype = code == DlCode::integer ? torch.int64 : torch.float32;
  PyObject* const made = of_columns ? empty(of_rows, of_columns, dtype, data) : nullptr;
  Py_XDECREF(of_rows);
  Py_XDECREF(of_columns);
  return made;
}

namespace fast_cascade {

void bind(py::module_& m) {
  // a plain C function: pybind11's own converters touch more memory than this whole call
  static PyMethodDef methods[] = {
      {"cascade_topk_of_tensors", as_method(&cascade_topk), METH_FASTCALL,
       "cascade_topk_of_tensors(arg0: list, arg1: list, arg2: tuple, arg3: tuple, arg4: object, arg5: "
       "object, "
       "arg6: object, arg7: int) -> object\n\nThe cascade on torch's tensors; None: fall back to "
       "torch.ops.cpr.cascade_topk."},
      {"are_plain", as_method(&are_plain), METH_FASTCALL,
       "are_plain(*args) -> bool\n\nWhether all are None or dense tensors in CPU memory, of torch's own type "
       "and "
       "with nothing pending."},
      {nullptr, nullptr, 0, nullptr}};
  if (PyModule_AddFunctions(m.ptr(), methods) != 0) throw py::error_already_set();
  m.def(
      "connect_torch", &connect_torch,
      "Sets which tensors cascade_topk_of_tensors reads and makes; False where this torch does not let it.");
}

}  // namespace fast_cascade
}  // namespace cpr
