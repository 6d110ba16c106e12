// The fast path for plain tensors on the CPU: it bypasses torch's dispatcher, and leaves to it what it does
// not take.
#pragma once
#include <pybind11/pybind11.h>

#include "dlpack_tensors.h"

namespace cpr {

// How torch's tensors are read; it reads none before `connect_torch`.
const TorchTensors& torch_tensors();

namespace fast_cascade {

void bind(pybind11::module_& m);

}  // namespace fast_cascade
}  // namespace cpr
