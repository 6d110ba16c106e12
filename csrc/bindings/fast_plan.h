// The steps of a mining plan on plain tensors on the CPU; None, or False: torch computes the step instead.
#pragma once
#include <pybind11/pybind11.h>

namespace cpr {
namespace fast_plan {

void bind(pybind11::module_& m);

}  // namespace fast_plan
}  // namespace cpr
