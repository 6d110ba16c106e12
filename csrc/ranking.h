// The one definition of "ranks before": score descending, then index ascending. NaN is never ranked.
#pragma once
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define CPR_HOST_DEVICE __host__ __device__
#else
#define CPR_HOST_DEVICE
#endif

namespace cpr {

// Everything that ranks at or before this entry is "within the cut".
struct Cut {
  float score;
  int32_t index;
};

inline bool ranks_before(float score_a, int32_t index_a, float score_b, int32_t index_b) {
  return score_a > score_b || (score_a == score_b && index_a < index_b);
}

inline bool within(float score, int32_t index, Cut cut) {
  return score > cut.score || (score == cut.score && index <= cut.index);
}

// Unsigned, ascending with the score. -0 and +0 are equal scores, so -0 becomes +0. No score but NaN gives 0
// or ~0.
CPR_HOST_DEVICE inline uint32_t ascending_key(float score) {
  score += 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &score, sizeof bits);
  return bits ^ ((0u - (bits >> 31)) | 0x80000000u);  // a negative one's bits turned, else the sign bit set
}

CPR_HOST_DEVICE inline float score_of_ascending(uint32_t ascending) {
  const uint32_t bits = (ascending & 0x80000000u) ? (ascending & 0x7FFFFFFFu) : ~ascending;
  float score;
  std::memcpy(&score, &bits, sizeof score);
  return score;
}

// Unsigned keys that sort ascending exactly as entries rank.
CPR_HOST_DEVICE inline uint64_t ranking_key(float score, int32_t index) {
  return (static_cast<uint64_t>(~ascending_key(score)) << 32) | static_cast<uint32_t>(index);
}

CPR_HOST_DEVICE inline float score_of_key(uint64_t key) {
  return score_of_ascending(~static_cast<uint32_t>(key >> 32));
}

}  // namespace cpr
