// The sweep over the keys of cpr::cascade_topk: panels of them are scored for a group of queries and filtered
// into what each query collects.
#pragma once
#include "../scores/mix.h"
#include "blocking.h"

namespace cpr {
namespace CPR_ISA_NAMESPACE {

// Whether every key may be selected and is collected: scores then go straight into the lists (`score_lists`).
inline bool collects_all(const CascadeArgs& args, const CascadePlan& plan) {
  return plan.levels == 0 && plan.mixes == 0 && !args.key_ids && !args.exclude;
}

template <int NR>
struct Cascade {
  const CascadeArgs& args;
  const CascadePlan& plan;
  const Shape& shape;
  const SharedMemory& shared;
  Dims dims;

  int64_t queries_of_group() const { return shape.blocks_per_group * shape.width; }
  int blocks_of(int64_t group) const {  // the last group may have fewer
    const int64_t left = shape.blocks - group * shape.blocks_per_group;
    return static_cast<int>(left < shape.blocks_per_group ? left : shape.blocks_per_group);
  }
  const float* packed_of(int64_t slot_in_wave, int view) const {
    const float* place = shared.packed + slot_in_wave * queries_of_group() * dims.total;
    for (int v = 0; v < view; ++v) place += queries_of_group() * args.views[v].dim;
    return place;
  }
  int32_t* pairs_of_group(int64_t slot_in_wave, int view) const {
    int32_t* place = shared.pairs + slot_in_wave * queries_of_group() * dims.pairs;
    for (int v = 0; v < view; ++v) place += queries_of_group() * pairs_of(args.views[v].dim);
    return place;
  }
  // Where `factor`, `length` and `error` hold a query of the wave.
  int64_t at_query(int64_t query_in_wave, int view) const {
    return view * shape.groups_per_wave * queries_of_group() + query_in_wave;
  }
  float* longest_at(int64_t slot_in_wave, int part, int view) const {
    return shared.longest + ((slot_in_wave * shape.parts + part) * args.num_views + view) * W;
  }
  float* reference_at(int64_t slot_in_wave, int view) const {
    return shared.reference + slot_in_wave * args.num_views + view;
  }
  // The longest key seen so far.
  float longest_of(int64_t slot_in_wave, int view) const {
    float longest = 0;
    for (int part = 0; part < shape.parts; ++part) {
      const float seen = max_of(load(longest_at(slot_in_wave, part, view)));
      longest = seen > longest ? seen : longest;
    }
    return longest;
  }
  char* collected_at(int64_t query_in_wave, int part) const {
    return shared.collected + (query_in_wave * shape.parts + part) * Collected::bytes(plan);
  }
  Collected collected_of(int64_t query_in_wave, int part) const {
    return Collected::at(collected_at(query_in_wave, part), plan);
  }
  // A block of a group's queries, ready for what follows.
  void start(int64_t group, int64_t slot_in_wave, int64_t block, const ThreadMemory& m) const {
    const int64_t width = shape.width, in_wave = slot_in_wave * queries_of_group() + block * width;
    const int64_t first = group * queries_of_group() + block * width;
    const int64_t left = args.num_queries > first ? args.num_queries - first : 0;
    for (int v = 0; v < args.num_views && !plan.int16_scores; ++v)
      pack_queries(args.views[v], args.dtype, first, left, shape.width,
                   const_cast<float*>(packed_of(slot_in_wave, v)) + block * args.views[v].dim * width);
    if (plan.int16_scores) pack_int16(first, left, slot_in_wave, block, m);
    for (int64_t i = in_wave; i < in_wave + width; ++i) {
      for (int part = 0; part < shape.parts; ++part) collected_of(i, part).clear(plan);
      for (int l = 0; l < plan.levels; ++l)
        shared.brackets[i * plan.levels + l] = {cut_nothing(), cut_everything()};
    }
  }

  // A block's queries as pairs, for int16 scores.
  void pack_int16(int64_t first, int64_t left, int64_t slot_in_wave, int64_t block,
                  const ThreadMemory& m) const {
    if (block == 0) {
      shared.uses_int16[slot_in_wave] = 1;
      for (int part = 0; part < shape.parts; ++part)
        std::memset(longest_at(slot_in_wave, part, 0), 0, sizeof(float) * args.num_views * W);
      std::memset(reference_at(slot_in_wave, 0), 0, sizeof(float) * args.num_views);
    }
    for (int v = 0; v < args.num_views; ++v) {
      const View& view = args.views[v];
      const int64_t pairs = pairs_of(view.dim);
      int32_t* const columns = pairs_of_group(slot_in_wave, v) + block * pairs * shape.width;
      for (int64_t i = 0; i < shape.width; ++i) {
        const int64_t at = at_query(slot_in_wave * queries_of_group() + block * shape.width + i, v);
        Int16Query query = {0, 0, 0};
        if (i < left) {
          widen_row(row_at(view.queries, args.dtype, view.query_stride, first + i), args.dtype, view.dim,
                    m.wide);
          query = query_to_pairs(m.wide, view.dim, m.pairs);
        } else {
          std::memset(m.pairs, 0, sizeof(int32_t) * static_cast<size_t>(pairs));
        }
        for (int64_t k = 0; k < pairs; ++k) columns[k * shape.width + i] = m.pairs[k];
        shared.factor[at] = query.factor;
        shared.length[at] = query.length;
        shared.error[at] = query.error;
      }
    }
  }

  // Null where nothing is collected in codes.
  Quantizer* quantizers_of(int64_t query_in_wave) const {
    return plan.int16_lists ? shared.quantizers + query_in_wave * plan.rows : nullptr;
  }

  // From now on keys of a group share one scale, unless one turns out longer than the sample's.
  void set_reference(int64_t slot_in_wave) const {
    for (int v = 0; v < args.num_views; ++v)
      *reference_at(slot_in_wave, v) = MAYBE_LONGER * longest_of(slot_in_wave, v);
  }

  // From now on a query's sums become codes on its quantizers.
  void use_quantizers(int64_t query_in_wave) const {
    const Quantizer* const quantizers = quantizers_of(query_in_wave);
    for (int r = 0; r < plan.rows; ++r) {
      const int64_t at = at_query(query_in_wave, plan.slot_of_row[r]);
      shared.code_factor[at] = shared.factor[at] * quantizers[r].scale;
      shared.code_offset[at] = quantizers[r].offset;
    }
  }

  // error [R]: how far a query's int16 scores may be off, as far as keys have been visited; reach [R]: how
  // high they are at most. False: no bound.
  bool errors_of(int64_t slot_in_wave, int64_t query_in_wave, float* error, float* reach = nullptr) const {
    bool bounded = true;
    for (int r = 0; r < plan.rows; ++r) {
      const int view = plan.slot_of_row[r];
      const int64_t at = at_query(query_in_wave, view);
      const float longest = MAYBE_LONGER * longest_of(slot_in_wave, view);
      error[r] = shared.error[at] * longest + LEAST_ERROR;
      if (reach) reach[r] = shared.length[at] * longest;
      bounded = bounded && shared.length[at] * longest < MOST_LENGTHS && error[r] < MOST_LENGTHS;
    }
    return bounded;
  }

  Int16Products<NR> int16_products(int64_t slot_in_wave, int view, int part, const ThreadMemory& m) const {
    return {pairs_of_group(slot_in_wave, view),
            shared.factor + at_query(slot_in_wave * queries_of_group(), view),
            args.views[view].dim,
            m.pairs,
            longest_at(slot_in_wave, part, view),
            *reference_at(slot_in_wave, view)};
  }

  // As `score`, in codes.
  void code(const Panel& panel, int64_t slot_in_wave, int64_t group, int part, const ThreadMemory& m) const {
    const int64_t first = slot_in_wave * queries_of_group();
    for (int v = 0; v < args.num_views; ++v) {
      if (!plan.view_used[v]) continue;
      CodeProducts<NR> products = {int16_products(slot_in_wave, v, part, m),
                                   shared.code_offset + at_query(first, v), m.eligible.whole};
      products.products.query_factor = shared.code_factor + at_query(first, v);
      score_panel<NR>(args.views[v], args.dtype, panel, products, blocks_of(group), m.wide,
                      codes_of_view(v, m), ROW);
    }
  }
  int16_t* codes_of_view(int view, const ThreadMemory& m) const {  // in the memory of `scores`
    return reinterpret_cast<int16_t*>(m.scores) + view * queries_of_group() * ROW;
  }

  // Scores of a panel for the queries of a group, mixes included.
  void score(const Panel& panel, int64_t slot_in_wave, int64_t group, int part, const ThreadMemory& m) const {
    const int64_t slot_size = queries_of_group() * ROW;
    const int blocks = blocks_of(group);
    for (int v = 0; v < args.num_views; ++v) {
      if (!plan.view_used[v]) continue;
      const View& view = args.views[v];
      float* const out = m.scores + v * slot_size;
      if (plan.int16_scores)
        score_panel<NR>(view, args.dtype, panel, int16_products(slot_in_wave, v, part, m), blocks, m.wide,
                        out, ROW);
      else
        score_panel<NR>(view, args.dtype, panel, Products<NR>{packed_of(slot_in_wave, v), view.dim}, blocks,
                        m.wide, out, ROW);
    }
    if (plan.biased_mix >= 0)
      gather_bias(
          args.key_bias, panel.count, [&](int64_t i) { return panel.key(i); }, m.bias);
    for (int x = 0; x < plan.mixes; ++x)
      for (int64_t q = 0; q < blocks * shape.width; ++q)
        mix_scores(plan.mix_weights + x * args.num_views, args.num_views, m.scores + q * ROW, slot_size,
                   panel.count, x == plan.biased_mix ? m.bias : nullptr,
                   m.scores + (args.num_views + x) * slot_size + q * ROW);
  }

  void point_rows(const ThreadMemory& m, int64_t query, int64_t queries) const {
    for (int r = 0; r < plan.rows; ++r) m.rows[r] = m.scores + (plan.slot_of_row[r] * queries + query) * ROW;
  }

  // How many panels a pass has, and its p-th; a panel holds the pass's keys of a few whole strides, as many
  // for every part.
  int64_t strides_of(const Pass& pass) const {
    const int64_t stride = pass.units * pass.run;
    return (args.num_keys + stride - 1) / stride;
  }
  int64_t strides_a_panel(const Pass& pass) const {
    const int64_t most = PANEL / ((pass.end - pass.begin) * pass.run), strides = strides_of(pass);
    const int64_t panels = round_up((strides + most - 1) / most, shape.parts);
    return (strides + panels - 1) / panels;
  }
  int64_t panels_of(const Pass& pass) const {
    if (pass.end - pass.begin == pass.units) return (args.num_keys + PANEL - 1) / PANEL;
    const int64_t strides = strides_a_panel(pass);
    return (strides_of(pass) + strides - 1) / strides;
  }
  Panel panel_at(const Pass& pass, int64_t p, int32_t* which) const {
    if (pass.end - pass.begin == pass.units) {
      const int64_t first = p * PANEL, left = args.num_keys - first;
      return {nullptr, first, left < PANEL ? left : PANEL};
    }
    int64_t count = 0;
    for (int64_t i = 0; i < strides_a_panel(pass); ++i) {
      const int64_t stride = p * strides_a_panel(pass) + i, first = stride * pass.units * pass.run;
      if (pass.end - pass.begin == 1) {
        count =
            append_run(first + scrambled(pass.units, stride, pass.begin) * pass.run, pass.run, which, count);
        continue;
      }
      uint64_t taken = 0;  // units at most 64, in ascending order
      for (int64_t rank = pass.begin; rank < pass.end; ++rank)
        taken |= uint64_t{1} << scrambled(pass.units, stride, rank);
      for (; taken; taken &= taken - 1)
        count = append_run(first + __builtin_ctzll(taken) * pass.run, pass.run, which, count);
    }
    return {which, 0, count};
  }
  int64_t append_run(int64_t first, int64_t run, int32_t* which, int64_t count) const {
    for (int64_t key = first; key < first + run && key < args.num_keys; ++key)
      which[count++] = static_cast<int32_t>(key);
    return count;
  }

  // As `sweep`, in codes.
  template <int R>
  void sweep_codes(const Pass& pass, int64_t group, int64_t slot_in_wave, int part,
                   const ThreadMemory& m) const {
    const int64_t queries = queries_of_group(), first_query = group * queries, panels = panels_of(pass);
    for (int64_t p = part; p < panels; p += shape.parts) {
      const Panel panel = panel_at(pass, p, m.which);
      m.eligible.load_panel(panel);
      m.eligible.load_whole(panel);
      code(panel, slot_in_wave, group, part, m);
      for (int64_t i = 0; i < queries && first_query + i < args.num_queries; ++i) {
        const int64_t in_wave = slot_in_wave * queries + i;
        const int16_t* rows[R];
        for (int r = 0; r < R; ++r) rows[r] = codes_of_view(plan.slot_of_row[r], m) + i * ROW;
        filter_codes<R>(plan, panel, first_query + i, shared.brackets + in_wave * plan.levels,
                        quantizers_of(in_wave), rows, m.eligible, collected_of(in_wave, part));
      }
    }
  }

  // A part's keys of a pass, panel by panel, for all queries of a group.
  template <int R>
  void sweep(const Pass& pass, int64_t group, int64_t slot_in_wave, int part, const ThreadMemory& m) const {
    if (plan.int16_scores && !shared.uses_int16[slot_in_wave]) return;  // refused
    if constexpr (R > 0)
      if (plan.int16_lists && !pass.starts_over) return sweep_codes<R>(pass, group, slot_in_wave, part, m);
    const int64_t queries = queries_of_group(), first_query = group * queries, panels = panels_of(pass);
    for (int64_t p = part; p < panels; p += shape.parts) {
      const Panel panel = panel_at(pass, p, m.which);
      if (panel.count == 0) continue;
      score(panel, slot_in_wave, group, part, m);
      m.eligible.load_panel(panel);
      for (int64_t i = 0; i < queries && first_query + i < args.num_queries; ++i) {
        const int64_t in_wave = slot_in_wave * queries + i;
        point_rows(m, i, queries);
        const Bracket* brackets = shared.brackets + in_wave * plan.levels;
        filter_panel<R>(plan, panel, first_query + i, brackets, m.rows, m.eligible,
                        collected_of(in_wave, part));
      }
    }
  }
  // A part's keys, every score written where `list_all` finds it: panel after panel, a row a view.
  void score_lists(const Pass& pass, int64_t group, int64_t slot_in_wave, int part,
                   const ThreadMemory& m) const {
    const int64_t stride = shape.parts * Collected::bytes(plan) / static_cast<int64_t>(sizeof(float));
    const List list = collected_of(slot_in_wave * queries_of_group(), part).list(plan);
    int64_t at = 0;
    for (int64_t p = part; p < panels_of(pass); p += shape.parts, at += PANEL)
      for (int r = 0; r < plan.rows; ++r) {
        const int view = plan.slot_of_row[r];
        score_panel<NR>(args.views[view], args.dtype, panel_at(pass, p, m.which),
                        packed_of(slot_in_wave, view), blocks_of(group), m.wide, list.row(r) + at, stride);
      }
  }
  // What `score_lists` wrote for a query, as one list without NaN.
  void list_all(int64_t query_in_wave, List& all) const {
    for (int part = 0; part < shape.parts; ++part) {
      const List list = collected_of(query_in_wave, part).list(plan);
      int64_t at = 0;
      for (int64_t first = part * PANEL; first < args.num_keys; first += shape.parts * PANEL, at += PANEL)
        append_scored(list, at, first, args.num_keys - first < PANEL ? args.num_keys - first : PANEL,
                      plan.rows, all);
    }
  }
  void sweep_rows(const Pass& pass, int64_t group, int64_t slot_in_wave, int part,
                  const ThreadMemory& m) const {
    if (collects_all(args, plan)) return score_lists(pass, group, slot_in_wave, part, m);
    switch (plan.rows) {
      case 1:
        return sweep<1>(pass, group, slot_in_wave, part, m);
      case 2:
        return sweep<2>(pass, group, slot_in_wave, part, m);
      case 3:
        return sweep<3>(pass, group, slot_in_wave, part, m);
      default:
        return sweep<0>(pass, group, slot_in_wave, part, m);
    }
  }
};

}  // namespace CPR_ISA_NAMESPACE
}  // namespace cpr
