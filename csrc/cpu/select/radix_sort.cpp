// Sorts the keys of ranking.h: what a call with thousands of results spends most of its time on.
#include "radix_sort.h"

#include <algorithm>
#include <cstring>

namespace cpr {

namespace {

constexpr int64_t FEW = 512;  // sorted by comparisons
constexpr int BITS = 11;      // of a key looked at in one pass
constexpr int DIGITS = 6;     // of a key of 64 bits
constexpr int64_t BUCKETS = 1 << BITS;

int64_t digit_of(uint64_t key, int digit) {
  return static_cast<int64_t>(key >> digit * BITS) & (BUCKETS - 1);
}

}  // namespace

void sort_ranking_keys(uint64_t* keys, int64_t n, uint64_t* spare) {
  if (n <= FEW || !spare) return std::sort(keys, keys + n);
  uint32_t counts[DIGITS][BUCKETS] = {};
  for (int64_t i = 0; i < n; ++i)
    for (int digit = 0; digit < DIGITS; ++digit) ++counts[digit][digit_of(keys[i], digit)];
  uint64_t *from = keys, *to = spare;
  for (int digit = 0; digit < DIGITS; ++digit) {  // the lowest first: what is equal keeps its order
    uint32_t* const places = counts[digit];
    if (places[digit_of(keys[0], digit)] == n) continue;  // one digit in all
    uint32_t next = 0;
    for (int64_t bucket = 0; bucket < BUCKETS; ++bucket) {
      const uint32_t count = places[bucket];
      places[bucket] = next;
      next += count;
    }
    for (int64_t i = 0; i < n; ++i) to[places[digit_of(from[i], digit)]++] = from[i];
    std::swap(from, to);
  }
  if (from != keys) std::memcpy(keys, from, sizeof(uint64_t) * static_cast<size_t>(n));
}

}  // namespace cpr
