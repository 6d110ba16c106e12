// How the selection for a query is cut up: the distinct weightings of its stages, threads, and where its
// lists are. Arithmetic alone, so that it can be planned for a device that is not here.
#pragma once
#include <algorithm>

#include "../../cascade_topk.h"
#include "../../weightings.h"
#include "../device/carver.h"
#include "../device/device_limits.h"
#include "../device/tuning.h"

namespace cpr {

constexpr uint32_t SORTED_IN_SHARED = 1024;     // longest result sorted where the bins were
constexpr int64_t SELECT_MEMORY_BYTES = 13696;  // of a block that selects, beside its lists (bins.h)
// Threads that select for one query. Up to 4,096 entries are four steps of 256 threads, and four such blocks
// share a multiprocessor. Beyond, the 64 registers a thread of select_kernel and 65,536 of a multiprocessor
// allow two blocks of 512, which hide each other's barriers, where shared memory holds both lists (a block's
// own kilobyte counted); else one block of 1,024.
constexpr int SMALL_THREADS = 256, HALF_THREADS = 512, LARGE_THREADS = 1024;
constexpr int64_t LARGE_FROM = 4096;
// Selection by codes (by_codes.h): pairs of entries that a thread holds, where 256 or 512 select, and the
// longest result.
constexpr int FEW_PAIRS = 8, MANY_PAIRS = 16;
template <int PAIRS>
constexpr int CODED_THREADS = 32 * PAIRS;
static_assert(CODED_THREADS<FEW_PAIRS> == SMALL_THREADS && CODED_THREADS<MANY_PAIRS> == HALF_THREADS,
              "of both");
constexpr int64_t CODED_RESULT = 256;

// The distinct weightings of the stages. Stages with the same weighting share a row.
struct Weightings {
  int num_views, rows, stages;
  float weights[MAX_ROWS * MAX_VIEWS];  // [rows, num_views]
  int8_t plain[MAX_ROWS];               // the view that a row judges by alone with weight 1, or -1
  uint8_t row_of_stage[MAX_STAGES];
  int biased;                 // the row of the last stage alone that key_bias is added to, or -1
  uint32_t keep[MAX_STAGES];  // at most num_keys
  int first;                  // the first stage that keeps fewer than num_keys; `stages` when none does
};

// Where scores are: [planes][queries, pitch] floats.
struct ScoreRows {
  float* scores;
  int64_t plane_stride, pitch;
};

struct SelectLayout {
  int used[MAX_VIEWS];  // the views that some stage weighs, by their number in the call
  Weightings weightings;
  int planes;               // of scores: a view's each, and one of each row that is not a view as it is
  uint8_t plane[MAX_ROWS];  // of each row
  uint32_t longest;         // list: what the first stage that drops something keeps, a multiple of 4
  uint32_t shared_entries;  // what the list in shared memory holds, a multiple of 4
  uint32_t paired;          // stages that are decided with the one before by the same codes, a bit each
  uint32_t coded_entries;   // the same of the first of two lists of codes; 0 where none are used
  int64_t shared_bytes;     // of a block
  int64_t sort_size;        // entries to sort a query, a power of two; 0 when results are short
  int threads;              // of a block
  uint32_t* lists;          // [queries][rows + 1, longest], null when shared memory holds the longest list
  uint64_t* sorts;          // [queries][sort_size], null when results are short

  bool lists_fit_shared() const { return longest <= shared_entries; }
};

inline int64_t select_shared_bytes(int rows, uint32_t entries) {
  return SELECT_MEMORY_BYTES + int64_t{rows + 1} * entries * 4;
}

// The rows that stages judge by, over the views that some stage weighs.
inline const char* plan_rows(const CascadeArgs& args, SelectLayout& layout) {
  if (args.num_stages > MAX_STAGES) return "the CUDA kernels run at most 32 stages";
  Weightings& weightings = layout.weightings;
  const int V = args.num_views;
  int views = 0;
  for (int v = 0; v < V; ++v) {
    bool weighed = false;
    for (int s = 0; s < args.num_stages; ++s) weighed = weighed || args.weights[s * V + v] != 0;
    if (!weighed) continue;
    if (views == MAX_VIEWS) return "the CUDA kernels weigh at most 8 views";
    if (args.views[v].dim > INT32_MAX - 64) return "a view of more than 2^31 features";
    layout.used[views++] = v;
  }
  weightings.num_views = views;
  weightings.stages = args.num_stages;
  weightings.rows = 0;
  weightings.biased = -1;
  for (int s = 0; s < args.num_stages; ++s) {
    const int first = first_same_weighting(args.weights, V, s);
    const bool biased = args.key_bias && s + 1 == args.num_stages;
    if (first < s && !biased) {
      weightings.row_of_stage[s] = weightings.row_of_stage[first];
    } else {
      if (weightings.rows == MAX_ROWS)
        return "the CUDA kernels judge by at most 8 distinct weightings of the views";
      float* row = weightings.weights + weightings.rows * views;
      for (int v = 0; v < views; ++v) row[v] = args.weights[s * V + layout.used[v]];
      weightings.plain[weightings.rows] = static_cast<int8_t>(biased ? -1 : only_view(row, views));
      if (biased) weightings.biased = weightings.rows;
      weightings.row_of_stage[s] = static_cast<uint8_t>(weightings.rows++);
    }
    weightings.keep[s] = static_cast<uint32_t>(std::min(args.keep[s], args.num_keys));
  }
  weightings.first = 0;
  while (weightings.first < weightings.stages && weightings.keep[weightings.first] >= args.num_keys)
    ++weightings.first;
  return nullptr;
}

// How long lists are, how much of them is in shared memory, and how many threads work on a query.
inline void plan_lists(int64_t num_keys, const DeviceLimits& limits, SelectLayout& layout) {
  const Weightings& weightings = layout.weightings;
  const int64_t most = weightings.first < weightings.stages ? weightings.keep[weightings.first] : num_keys;
  layout.longest = static_cast<uint32_t>(std::max<int64_t>(rounded_up(most, 4), 4));
  const int64_t an_entry = 4 * (weightings.rows + 1);
  const int64_t room = (limits.shared_bytes - SELECT_MEMORY_BYTES) / an_entry / 4 * 4;
  layout.shared_entries = static_cast<uint32_t>(std::min<int64_t>(layout.longest, room));
  const bool two_fit =
      select_shared_bytes(weightings.rows, layout.shared_entries) <= (limits.shared_bytes + 1024) / 2 - 1024;
  layout.threads = num_keys <= LARGE_FROM ? SMALL_THREADS : two_fit ? HALF_THREADS : LARGE_THREADS;
  if (tuning().select_threads > 0) layout.threads = tuning().select_threads;
}

// How much shared memory a block that selects takes, and whether it does so by codes: by at most two rows,
// where threads hold all entries, and lists of those that stay after every second stage fit.
inline void plan_codes(int64_t num_keys, const DeviceLimits& limits, SelectLayout& layout) {
  const Weightings& weightings = layout.weightings;
  const int pairs = layout.threads / 32;
  layout.shared_bytes = select_shared_bytes(weightings.rows, layout.shared_entries);
  if (weightings.rows > 2 || weightings.stages > 31 || !layout.lists_fit_shared() ||
      weightings.first == weightings.stages || layout.threads > HALF_THREADS ||
      num_keys > int64_t{2} * pairs * layout.threads || weightings.keep[weightings.stages - 1] > CODED_RESULT)
    return;
  int64_t entries[2] = {0, 0}, n = num_keys;
  for (int s = weightings.first, list = 0; s < weightings.stages; list = 1 - list) {
    const int judge = weightings.row_of_stage[s];
    for (int decided = 0; decided < 2 && s < weightings.stages; ++decided) {
      if (decided == 1 && weightings.row_of_stage[s] == judge) break;
      if (weightings.keep[s] >= n) return;
      layout.paired |= static_cast<uint32_t>(decided) << s;
      n = weightings.keep[s++];
    }
    entries[list] = std::max(entries[list], rounded_up(n, 32 * 2 * pairs));  // of whole warps
  }
  const int64_t bytes = SELECT_MEMORY_BYTES + 8 * (entries[0] + entries[1]);
  if (bytes > limits.shared_bytes) return;
  layout.coded_entries = static_cast<uint32_t>(entries[0]);
  layout.shared_bytes = std::max(layout.shared_bytes, bytes);
}

// Null, or why the call cannot run. Leaves `lists` and `sorts` to whoever has the workspace.
inline const char* plan_select(const CascadeArgs& args, const DeviceLimits& limits, SelectLayout& layout) {
  layout = {};
  if (const char* reason = plan_rows(args, layout)) return reason;
  plan_lists(args.num_keys, limits, layout);
  plan_codes(args.num_keys, limits, layout);
  const int64_t k = std::min(args.keep[args.num_stages - 1], args.num_keys);
  if (k > SORTED_IN_SHARED)
    for (layout.sort_size = SORTED_IN_SHARED; layout.sort_size < k;) layout.sort_size *= 2;
  layout.planes = layout.weightings.num_views;
  for (int r = 0; r < layout.weightings.rows; ++r) {
    const int plain = layout.weightings.plain[r];
    layout.plane[r] = static_cast<uint8_t>(plain >= 0 ? plain : layout.planes++);
  }
  return nullptr;
}

}  // namespace cpr
