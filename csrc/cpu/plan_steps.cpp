// A mining plan's steps on rows in memory. Sums have a fixed order, so that a row has the same bits in any
// batch.
#include "../plan_steps.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <vector>

namespace cpr {
namespace {

constexpr float SHORTEST = 1e-12f;      // as torch.nn.functional.normalize divides
constexpr float HUB_WEIGHT = 0.5f;      // as steps.HUB_WEIGHT
constexpr int64_t ROWS_A_THREAD = 256;  // fewer are not worth waking one

double sum_of_squares(const float* row, int64_t columns) {
  double lanes[4] = {};
  int64_t c = 0;
  for (; c + 4 <= columns; c += 4)
    for (int lane = 0; lane < 4; ++lane) lanes[lane] += static_cast<double>(row[c + lane]) * row[c + lane];
  for (; c < columns; ++c) lanes[0] += static_cast<double>(row[c]) * row[c];
  return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
}

// Whether the row is zeros throughout, or holds NaN.
bool is_missing(const float* row, int64_t columns) {
  bool any = false, wrong = false;
  for (int64_t c = 0; c < columns; ++c) {
    any |= row[c] != 0.0f;
    wrong |= row[c] != row[c];
  }
  return !any || wrong;
}

// sum(weights[k] * keys[indices[k]]) + row; padding is passed over. False where an index is beyond the keys.
bool add_neighbors(const ExpandArgs& args, const ExpandedView& view, int64_t b, float* out) {
  const int64_t* const indices = args.indices[b];
  const float *const weights = args.weights[b], *const row = view.rows[b];
  std::fill(out, out + view.columns, 0.0f);
  for (int64_t k = 0; k < args.neighbors; ++k) {
    if (indices[k] < 0) continue;
    if (indices[k] >= args.num_keys) return false;
    const float weight = weights[k];
    const float* const key = view.keys[indices[k]];
    for (int64_t c = 0; c < view.columns; ++c) out[c] += weight * key[c];
  }
  for (int64_t c = 0; c < view.columns; ++c) out[c] += row[c];
  return true;
}

bool expand_row(const ExpandArgs& args, int64_t b) {
  double squares = 0.0;
  for (int v = 0; v < args.num_views; ++v) {
    const ExpandedView& view = args.views[v];
    float* const out = view.out + b * view.columns;
    if (!add_neighbors(args, view, b, out)) return false;
    squares += sum_of_squares(out, view.columns);
  }
  const float length = std::max(static_cast<float>(std::sqrt(squares)), SHORTEST);
  const float scale = static_cast<float>(std::sqrt(static_cast<double>(args.num_views))) / length;
  for (int v = 0; v < args.num_views; ++v) {
    float* const out = args.views[v].out + b * args.views[v].columns;
    for (int64_t c = 0; c < args.views[v].columns; ++c) out[c] *= scale;
  }
  return true;
}

struct Neighbor {
  float score;
  int64_t index;
  bool operator<(const Neighbor& other) const {  // ranks before
    return score > other.score || (score == other.score && index < other.index);
  }
};

}  // namespace

void unit_rows_cpu(const UnitArgs& args) {
  for (int64_t b = 0; b < args.num_rows; ++b) {
    float* const moved = args.moved[b];
    args.missing[b] = is_missing(args.given[b], args.given_columns);
    if (args.missing[b]) {
      std::fill(moved, moved + args.moved_columns, 0.0f);
      continue;
    }
    const float length =
        std::max(static_cast<float>(std::sqrt(sum_of_squares(moved, args.moved_columns))), SHORTEST);
    for (int64_t c = 0; c < args.moved_columns; ++c) moved[c] /= length;
  }
}

bool expand_rows_cpu(const ExpandArgs& args) {
  std::atomic<bool> fits{true};
  const int64_t of_rows = std::max<int64_t>(args.num_rows / ROWS_A_THREAD, 1);
  const int threads = static_cast<int>(std::min<int64_t>(args.threads, of_rows));
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t b = 0; b < args.num_rows; ++b)
    if (!expand_row(args, b)) fits = false;
  return fits;
}

void hub_terms_cpu(Rows<const float> scores, int64_t num_rows, int64_t count, float* terms) {
  for (int64_t b = 0; b < num_rows; ++b) {
    const float* const row = scores[b];
    double sum = 0.0;
    int64_t known = 0;
    for (int64_t i = 0; i < count; ++i) {
      if (!(row[i] > -std::numeric_limits<float>::infinity())) continue;  // NaN is not above it
      sum += std::min(row[i], std::numeric_limits<float>::max());
      ++known;
    }
    terms[b] = static_cast<float>(sum / static_cast<double>(std::max<int64_t>(known, 1)));
  }
}

bool less_hubs_cpu(const HubArgs& args) {
  std::vector<Neighbor> row(static_cast<size_t>(args.width));
  const auto kept = row.begin() + args.topk;
  for (int64_t b = 0; b < args.num_queries; ++b) {
    const int64_t* const indices = args.indices[b];
    const float* const scores = args.scores[b];
    for (int64_t i = 0; i < args.width; ++i) {
      const int64_t place = std::max<int64_t>(indices[i], 0);
      if (place >= args.num_keys) return false;
      const float score = scores[i] - HUB_WEIGHT * args.terms[place];
      if (std::isnan(score)) return false;
      row[static_cast<size_t>(i)] = {score, indices[i]};
    }
    std::partial_sort(row.begin(), kept, row.end());
    for (int64_t i = 0; i < args.topk; ++i) {
      args.out_indices[b * args.topk + i] = row[static_cast<size_t>(i)].index;
      args.out_scores[b * args.topk + i] = row[static_cast<size_t>(i)].score;
    }
  }
  return true;
}

}  // namespace cpr
