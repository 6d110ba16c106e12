// The fast path for plain tensors on the CPU: it bypasses torch's dispatcher, and leaves to it what it does
// not take.
#pragma once
#include <pybind11/pybind11.h>

#include "dlpack_tensors.h"

namespace cpr {

// How torch's tensors are read; it reads none before `connect_torch`.
const TorchTensors& torch_tensors();

// torch.empty(rows, columns) of int64 or float32 in CPU memory, and where its elements are; null with a
// Python error.
PyObject* empty_tensor(int64_t rows, int64_t columns, DlCode code, void*& data);

// A function of METH_FASTCALL as a table of methods holds it.
template <typename Function>
PyCFunction as_method(Function function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(function));
}

namespace fast_cascade {

void bind(pybind11::module_& m);

}  // namespace fast_cascade
}  // namespace cpr
