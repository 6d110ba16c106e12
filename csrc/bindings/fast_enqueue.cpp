#include "fast_enqueue.h"

#include <algorithm>
#include <array>

#include "../enqueue.h"
#include "fast_cascade.h"

namespace cpr {
namespace {

namespace py = pybind11;

constexpr Py_ssize_t MAX_FAST_COLUMNS = 32;  // more fall back to the dispatcher

// Whether every row [...] of a tensor [N, ...] is contiguous.
bool packed_rows(const DlTensor& tensor) {
  int64_t stride = 1;
  for (int i = tensor.dims - 1; i > 0; --i) {
    if (tensor.shape[i] != 1 && tensor.strides[i] != stride) return false;
    stride *= tensor.shape[i];
  }
  return true;
}

// Buffers [N, ...] and rows [B, ...] of one dtype and shape, as the core walks them. `take` returns false to fall
// back to the dispatcher: something does not fit, or has rows that are not contiguous.
struct FastColumns {
  std::array<Column, MAX_FAST_COLUMNS> columns;
  int64_t size = 0, batch = 0;

  bool take(Py_ssize_t c, PyObject* of_buffer, PyObject* of_rows) {
    DlTensor buffer, rows;
    const TorchTensors& tensors = torch_tensors();
    if (!tensors.read(of_buffer, buffer) || !tensors.read(of_rows, rows)) return false;
    if (buffer.dims < 1 || rows.dims != buffer.dims || !packed_rows(buffer) || !packed_rows(rows)) return false;
    if (rows.code != buffer.code || rows.bits != buffer.bits || buffer.bits % 8 != 0) return false;
    if (!std::equal(buffer.shape + 1, buffer.shape + buffer.dims, rows.shape + 1)) return false;
    if (c == 0) {
      size = buffer.shape[0];
      batch = rows.shape[0];
    }
    int64_t bytes = buffer.bits / 8;
    const int64_t item = bytes;
    for (int i = 1; i < buffer.dims; ++i) bytes *= buffer.shape[i];
    columns[static_cast<size_t>(c)] = {static_cast<char*>(buffer.data), static_cast<const char*>(rows.data),
                                       bytes, buffer.strides[0] * item, rows.strides[0] * item};
    return size > 0 && buffer.shape[0] == size && rows.shape[0] == batch;
  }
};

bool take_number(PyObject* given, int64_t*& number) {
  DlTensor tensor;
  if (!torch_tensors().read(given, tensor) || !holds(tensor, DlCode::integer, 64)) return false;
  number = static_cast<int64_t*>(tensor.data);
  return tensor.dims == 0;
}

// buffers, rows: lists of tensors; pointer, count: tensors. Returns whether it wrote; False: fall back to the
// dispatcher.
PyObject* enqueue(PyObject*, PyObject* const* given, Py_ssize_t count) {
  if (count != 4 || !PyList_CheckExact(given[0]) || !PyList_CheckExact(given[1])) Py_RETURN_FALSE;
  const Py_ssize_t columns = PyList_GET_SIZE(given[0]);
  if (columns < 1 || columns > MAX_FAST_COLUMNS || PyList_GET_SIZE(given[1]) != columns) Py_RETURN_FALSE;
  FastColumns call;
  int64_t *pointer = nullptr, *filled = nullptr;
  if (!take_number(given[2], pointer) || !take_number(given[3], filled)) Py_RETURN_FALSE;
  for (Py_ssize_t c = 0; c < columns; ++c)
    if (!call.take(c, PyList_GET_ITEM(given[0], c), PyList_GET_ITEM(given[1], c))) Py_RETURN_FALSE;
  Py_BEGIN_ALLOW_THREADS;
  enqueue_cpu(call.columns.data(), static_cast<int>(columns), call.size, call.batch, pointer, filled);
  Py_END_ALLOW_THREADS;
  Py_RETURN_TRUE;
}

}  // namespace

namespace fast_enqueue {

void bind(py::module_& m) {
  static PyMethodDef methods[] = {
      {"enqueue_tensors", as_method(&enqueue), METH_FASTCALL,
       "enqueue_tensors(arg0: list, arg1: list, arg2: object, arg3: object) -> bool\n\nWrites rows of torch's "
       "tensors over the oldest of buffers; False: nothing was written, fall back to torch.ops.cpr.enqueue_."},
      {nullptr, nullptr, 0, nullptr}};
  if (PyModule_AddFunctions(m.ptr(), methods) != 0) throw py::error_already_set();
}

}  // namespace fast_enqueue
}  // namespace cpr
