// Is there a CUDA device to run on?
#pragma once
#include <string>

namespace cpr {

// Empty when a device can be used, else why not, in the driver's words.
std::string cuda_unavailable();

}  // namespace cpr
