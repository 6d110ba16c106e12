// Sorts ranking keys (ranking.h).
#pragma once
#include <cstdint>

namespace cpr {

// Ascending; `spare` [n], or null: then by comparisons, which suit a few.
void sort_ranking_keys(uint64_t* keys, int64_t n, uint64_t* spare);

}  // namespace cpr
