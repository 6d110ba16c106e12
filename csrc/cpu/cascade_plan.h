// What a cascade call will do, worked out once per call and shared by all threads.
#pragma once
#include <cstdint>

#include "../cascade_topk.h"
#include "../mil_nce.h"

namespace cpr {

// A row is one distinct way of judging: a view by itself, or a weighted mix of views. Stages name rows.
// A level is a leading stage that is decided while keys stream by, within brackets [certain, possible] from a sample.
struct CascadePlan {
  int rows;                      // R
  const int* slot_of_row;        // [R] score slot: a view, or num_views + mix
  int mixes;
  const float* mix_weights;      // [mixes, V]
  const uint8_t* view_used;      // [V]
  const int* row_of_stage;       // [S]
  const int64_t* keep;           // [S], at most N
  int levels;                    // L, at most 4
  const int32_t* sample;         // [sample_size] keys, ascending, readable 16 beyond
  int64_t sample_size;
  const int64_t* certain_rank;   // [L] sample rank taken as certainly kept; 0: none
  const int64_t* middle_rank;    // [L] sample rank expected at the threshold
  const int64_t* possible_rank;  // [L] sample rank beyond which entries are certainly dropped
  int64_t list_capacity;         // entries that a query is expected to collect from one part of the keys, with slack
};

struct CpuKernels {
  int lanes;
  int64_t (*cascade_topk)(const CascadeArgs&, const CascadePlan&);
};

struct LossKernels {
  bool (*sweep)(const LossArgs&, const LossOut&);
  bool (*keys_gradient)(const LossArgs&, const float*, const float*, const float*, float*);
};

void sort_ranking_keys(uint64_t* keys, int64_t n);

}  // namespace cpr
