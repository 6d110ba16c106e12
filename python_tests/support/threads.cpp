// Runs the CPU kernels in four threads for the thread sanitizer (.ci/sanitize thread); with an argument, a
// race that it must find.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "../../csrc/cascade_rerank.h"
#include "../../csrc/cascade_topk.h"
#include "../../csrc/enqueue.h"
#include "../../csrc/mil_nce.h"

namespace {

using namespace cpr;
constexpr int64_t B = 40, N = 5000, D = 24, P = 4, M = 70;

std::vector<float> features(int64_t rows) {
  std::vector<float> made(static_cast<size_t>(rows * D));
  for (float& x : made) x = static_cast<float>(std::rand() % 7 - 3) / 3.0f;
  return made;
}

std::vector<int64_t> numbers(int64_t count, int64_t below, int64_t least = 0) {
  std::vector<int64_t> made(static_cast<size_t>(count));
  for (int64_t& x : made) x = std::rand() % below + least;
  return made;
}

struct Inputs {
  std::vector<float> query = features(B), positive = features(B), keys = features(N);
  std::vector<int64_t> positives = numbers(B * P, N), negatives = numbers(B * M, N);
  std::vector<float> bias = std::vector<float>(N, 0.25f);
  std::vector<int64_t> query_ids = numbers(B, 50), key_ids = numbers(N, 50, -1);
};

void race(Inputs& in) {
  int64_t pointer = 0, count = 0;
  const Column column{reinterpret_cast<char*>(in.keys.data()), reinterpret_cast<char*>(in.query.data()),
                      D * 4, D * 4, D * 4};
  const auto write = [&] { enqueue_cpu(&column, 1, N, B, &pointer, &count); };
  std::thread other(write);
  write();
  other.join();
}

bool losses(const Inputs& in, bool drawn) {
  LossArgs args{};
  args.query = in.query.data();
  args.positive = in.positive.data();
  args.keys = in.keys.data();
  args.query_stride = args.positive_stride = args.key_stride = args.dim = D;
  args.num_queries = B;
  args.num_keys = N;
  args.dtype = DType::float32;
  args.positives = in.positives.data();
  args.num_positives = P;
  args.temperature = 0.1f;
  args.query_ids = in.query_ids.data();
  args.key_ids = in.key_ids.data();
  args.siblings = 1;
  args.threads = 4;
  if (drawn) args.negatives = in.negatives.data(), args.num_negatives = M;
  std::vector<float> loss(B), all(B), positive(B), own(B), of_query(B * D), of_keys(N * D);
  std::vector<int64_t> stats(B * 3);
  const LossOut out{loss.data(), all.data(), positive.data(), own.data(), of_query.data(), stats.data()};
  if (!mil_nce_sweep_cpu(args, out)) return false;
  if (!mil_nce_keys_gradient_cpu(args, loss.data(), all.data(), positive.data(), of_keys.data()))
    return false;
  if (drawn) return true;
  std::vector<float> sums(B * 4), attended(B * 2 * D), best(B * BEST);
  std::vector<int32_t> ranks(B * 2);
  args.own = own.data();
  return mil_nce_share_cpu(args, {sums.data(), attended.data(), ranks.data(), best.data()});
}

// The cascade for some queries, over all keys or, for as many candidates a query, over those of `negatives`.
bool cascade(const Inputs& in, int64_t queries, const float* key_bias, int64_t candidates) {
  const View views[] = {{in.query.data(), in.keys.data(), D, D, D},
                        {in.positive.data(), in.keys.data(), D, D, D}};
  const float weights[] = {1, 0, 0, 1, 1, 0};  // the bias is added to what reaches the last stage
  const int64_t keep[] = {2000, 300, 5};
  CascadeArgs args{};
  args.views = views;
  args.num_views = 2;
  args.dtype = DType::float32;
  args.num_queries = queries;
  args.num_keys = N;
  args.weights = weights;
  args.keep = keep;
  args.num_stages = 3;
  args.query_ids = in.query_ids.data();
  args.key_ids = in.key_ids.data();
  args.key_bias = key_bias;
  args.threads = 4;
  std::vector<int64_t> indices(static_cast<size_t>(queries) * 5);
  std::vector<float> scores(static_cast<size_t>(queries) * 5);
  args.indices = indices.data();
  args.scores = scores.data();
  if (candidates == 0) return cascade_topk_cpu(args) >= 0;
  return cascade_rerank_cpu({args, in.negatives.data(), candidates, candidates});
}

}  // namespace

int main(int count, char**) {
  Inputs in;
  if (count > 1) {
    race(in);
    return 0;
  }
  bool ran = true;
  for (int i = 0; i < 3 && ran; ++i) {
    ran = losses(in, false) && losses(in, true);
    for (const float* bias : {static_cast<const float*>(nullptr), static_cast<const float*>(in.bias.data())})
      ran = ran && cascade(in, 1, bias, 0) && cascade(in, B, bias, 0) && cascade(in, B, bias, M);
    in.bias[7] = INFINITY;  // and from the second time on to the scores of the sweep
  }
  std::puts(ran ? "losses, cascades and reranks ran" : "memory ran out");
  return ran ? 0 : 1;
}
