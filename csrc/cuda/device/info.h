// Is there a CUDA device to run on?
#pragma once
#include <string>

namespace cpr {

// Empty when a device can be used, else why not, in the driver's words.
std::string cuda_unavailable();

// Makes a device current to this thread in the core's own copy of the runtime; null, or why it cannot.
const char* use_device(int index);

}  // namespace cpr
