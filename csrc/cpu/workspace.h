// Working memory of the CPU kernels. One block is kept between calls: asking the system for fresh pages at
// every step costs a small call more than its arithmetic.
#pragma once
#include <cstdint>

namespace cpr {

constexpr int64_t KEPT_BYTES = 16 << 20;  // a larger block is not kept

// At least `bytes`, aligned to 64; contents are whatever was left there. Null when there is no memory.
char* take_workspace(int64_t bytes);
// From any thread; null is allowed.
void give_back_workspace(char* workspace);
void release_workspace();  // hands what is kept back to the system

}  // namespace cpr
