// Subtracts half of each neighbour's hub term, and keeps the best.
#include "../less_hubs.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace cpr {
namespace {

constexpr float HUB_WEIGHT = 0.5f;  // as steps.HUB_WEIGHT

struct Neighbor {
  float score;
  int64_t index;
  bool operator<(const Neighbor& other) const {  // ranks before
    return score > other.score || (score == other.score && index < other.index);
  }
};

}  // namespace

bool less_hubs_cpu(const HubArgs& args) {
  std::vector<Neighbor> row(static_cast<size_t>(args.width));
  const auto kept = row.begin() + args.topk;
  for (int64_t b = 0; b < args.num_queries; ++b) {
    const int64_t* const indices = args.indices + b * args.indices_stride;
    const float* const scores = args.scores + b * args.scores_stride;
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
