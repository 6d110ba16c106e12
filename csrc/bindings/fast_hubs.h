// A tuned miner's last step on plain tensors on the CPU; what it does not take stays to torch.
#pragma once
#include <pybind11/pybind11.h>

namespace cpr {
namespace fast_hubs {

void bind(pybind11::module_& m);

}  // namespace fast_hubs
}  // namespace cpr
