// The short way in for plain tensors on the CPU; what it does not take goes through torch's dispatcher.
#pragma once
#include <pybind11/pybind11.h>

namespace cpr {
namespace direct_door {

void bind(pybind11::module_& m);

}  // namespace direct_door
}  // namespace cpr
