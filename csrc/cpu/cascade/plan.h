// What a cascade call will do, worked out once per call and shared by all threads.
#pragma once
#include <cstdint>

namespace cpr {

constexpr int MAX_LEVELS = 12;
constexpr int MAX_CODE_ROWS = 3;
constexpr int64_t MAX_CODE_KEYS = 65536;  // their indices take 16 bits

// Keys are visited in passes. The queue is cut into strides of `units` runs of `run` keys; a pass takes the
// runs whose rank in a scrambled order of their stride is in [begin, end). So what has been visited is
// always a sample spread evenly over the queue, jittered: no order or period of the queue can hide from it.
struct Pass {
  int64_t run, units;
  int64_t begin, end;
  bool narrows;      // brackets are set from what has been collected by its end
  bool starts_over;  // what it collected is dropped then: the next pass visits every key
  const int64_t*
      certain_rank;  // [L] rank among the keys visited so far that is taken as certainly kept; 0: none
  const int64_t* middle_rank;    // [L] rank expected at the threshold
  const int64_t* possible_rank;  // [L] rank beyond which entries are certainly dropped
};

// The unit of a stride at a rank; `units` must be odd or a power of two for more than one rank.
inline int64_t scrambled(int64_t units, int64_t stride, int64_t rank) {
  const uint64_t start = (static_cast<uint64_t>(stride) + 1) * 0x9E3779B97F4A7C15ull >> 33;
  return static_cast<int64_t>((start + static_cast<uint64_t>(rank) * 2654435761u) %
                              static_cast<uint64_t>(units));
}

// A row is one distinct way of weightings: a view by itself, or a weighted mix of views. Stages name rows.
// A level is a leading stage that is decided while keys stream by, within brackets [certain, possible].
struct CascadePlan {
  int rows;                // R
  const int* slot_of_row;  // [R] score slot: a view, or num_views + mix
  int mixes;
  const float* mix_weights;  // [mixes, V]
  int biased_mix;            // the mix that key_bias is added to; -1: none
  bool biased_late;          // key_bias is added to what is alive before the last stage
  const uint8_t* view_used;  // [V]
  const int* row_of_stage;   // [S]
  const int64_t* keep;       // [S], at most N
  int levels;                // L, at most MAX_LEVELS
  int passes;
  const Pass* pass;       // [passes]
  int64_t list_capacity;  // entries that a query is expected to hold at any time, with slack
  bool int16_scores;      // keys are scored by 16-bit products first, and what is close again exactly
  bool int16_lists;       // and collected in 16 bits a number once brackets are set
  uint8_t* missed;        // [B] set to MISSED or REFUSED; null where no query can be: no levels
};

constexpr uint8_t MISSED = 1;   // a query whose brackets missed
constexpr uint8_t REFUSED = 2;  // or were too narrow for int16 scores

}  // namespace cpr
