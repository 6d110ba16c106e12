// The fast path of cpr::enqueue_ for plain tensors on the CPU; it leaves to the dispatcher what it does not take.
#pragma once
#include <pybind11/pybind11.h>

namespace cpr {
namespace fast_enqueue {

void bind(pybind11::module_& m);

}  // namespace fast_enqueue
}  // namespace cpr
