// Which instruction set the CPU kernels run on.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace cpr {

std::vector<std::string> cpu_isas();        // what this machine can run, best first
std::string cpu_isa();                      // what is in use
bool use_cpu_isa(const std::string& name);  // for tests; false when this machine cannot run it
double cpu_flops_per_second(int threads);   // multiplying and adding in registers, best of some tries
std::vector<int64_t> sampled_keys(int64_t num_keys);  // whose scores bracket the thresholds; for tests

}  // namespace cpr
