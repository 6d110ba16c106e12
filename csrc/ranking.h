// The one definition of "ranks before": score descending, then index ascending. NaN is never ranked.
#pragma once
#include <cstdint>
#include <cstring>

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

// Unsigned keys that sort ascending exactly as entries rank. -0 and +0 are equal scores, so -0 becomes +0.
inline uint64_t ranking_key(float score, int32_t index) {
  score += 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &score, sizeof bits);
  const uint32_t ascending = (bits & 0x80000000u) ? ~bits : (bits | 0x80000000u);
  return (static_cast<uint64_t>(~ascending) << 32) | static_cast<uint32_t>(index);
}

inline float score_of_key(uint64_t key) {
  const uint32_t ascending = ~static_cast<uint32_t>(key >> 32);
  const uint32_t bits = (ascending & 0x80000000u) ? (ascending & 0x7FFFFFFFu) : ~ascending;
  float score;
  std::memcpy(&score, &bits, sizeof score);
  return score;
}

}  // namespace cpr
