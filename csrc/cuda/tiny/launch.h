// The launch of a tiny call.
#pragma once
#include "../select/launch.h"

namespace cpr {

// Null with *took false where the device cannot hold the cluster: the other kernels serve then.
const char* launch_tiny(const CascadeArgs& args, const SelectLayout& layout, bool* took, void* stream);

}  // namespace cpr
