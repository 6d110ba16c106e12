// The sums of attend.h for features too long for a block to hold: tiles of 128 features at a time come
// through shared memory, of rows and columns for the scores, then of the columns alone for the block's 128
// sums. Each block forms all scores, whichever features it sums: D / 128 times the products of scores. Every
// block adds them in one order, so that all see the same.
#pragma once
#include "attend.h"

namespace cpr {

constexpr int WIDE_STAGE = ATTEND_ROW_TILE<OUT_DEPTH> + ATTEND_COLUMN_TILE<OUT_DEPTH>;  // halves
constexpr int WIDE_SHARED_BYTES = 2 * 2 * WIDE_STAGE + static_cast<int>(sizeof(ColumnFacts));
static_assert(WIDE_SHARED_BYTES <= 99 * 1024, "fits every device from 8.0 on");

// Start copying tile `item` of the columns from `first` on: 0 to chunks - 1 of rows and columns, then the
// columns' features that the block sums.
CPR_DEVICE void fetch_item(const AttendArgs& args, uint32_t row0, uint32_t first, int item, int out,
                           uint16_t* to) {
  const int feature = (item < args.chunks ? item : out) * OUT_DEPTH;
  if (item < args.chunks) fetch_rows<OUT_DEPTH, ATTEND_ROWS>(args.rows, row0, args.num_rows, feature, to);
  fetch_rows<OUT_DEPTH, ATTEND_COLUMNS>(args.columns, first, args.num_columns, feature,
                                        to + ATTEND_ROW_TILE<OUT_DEPTH>);
}

// As attend(); grid z over chunks of features.
template <int MODE>
CPR_DEVICE void attend_wide(const AttendArgs& args, unsigned char* shared) {
  using A = Attention<OUT_DEPTH>;
  constexpr bool GRADIENT = MODE == ATTEND_GRADIENT;
  uint16_t* stages = reinterpret_cast<uint16_t*>(shared);
  ColumnFacts& facts = *reinterpret_cast<ColumnFacts*>(stages + 2 * WIDE_STAGE);
  const int lane = thread_index() & 31, warp = thread_index() >> 5, row_in_tile = warp * 16 + lane / 4;
  const uint32_t row0 = block_index() * ATTEND_ROWS, part = block_index_y();
  const uint32_t begin = part * args.part_columns;
  const uint32_t end =
      begin + args.part_columns < args.num_columns ? begin + args.part_columns : args.num_columns;
  const int out = static_cast<int>(block_index_z());
  const int items = args.chunks + (GRADIENT || args.attended ? 1 : 0);
  A attention{nullptr, nullptr, lane, warp * 16, 0, {}, {-120, -120}};
  LaneRows rows(args, row0 + static_cast<uint32_t>(row_in_tile));
  Ranks<MODE> ranks(args.ranks, args.num_rows, row0 + static_cast<uint32_t>(row_in_tile));
  float weights[A::N8][4] = {}, cross[A::N8][4] = {}, shrinks[2] = {1.0f, 1.0f};

  if (begin < end) fetch_item(args, row0, begin, 0, out, stages);
  copy_commit();
  int turn = 0;
  for (uint32_t first = begin; first < end; first += ATTEND_COLUMNS)
    for (int item = 0; item < items; ++item, turn ^= 1) {
      copy_wait<0>();
      sync_block();  // the item is there; the other stage, and the last step's facts, have been used
      const bool last = item + 1 == items;
      const uint32_t next = last ? first + ATTEND_COLUMNS : first;
      if (next < end)
        fetch_item(args, row0, next, last ? 0 : item + 1, out, stages + (turn ^ 1) * WIDE_STAGE);
      copy_commit();
      if (item == 0) load_facts<GRADIENT>(args, first, row0, facts);  // read after the next item's barrier
      attention.row_tile = stages + turn * WIDE_STAGE;
      attention.column_tile = attention.row_tile + ATTEND_ROW_TILE<OUT_DEPTH>;
      if (item < args.chunks) attention.add_scores(weights, cross);
      if (item + 1 == args.chunks) {
#pragma unroll
        for (int n = 0; n < A::N8; ++n)
#pragma unroll
          for (int c = 0; c < 4; ++c) weights[n][c] += cross[n][c];
        weigh<GRADIENT>(args, facts, first, end, row_in_tile, rows, ranks, weights, shrinks);
      }
      if (item == args.chunks) attention.add(weights, shrinks);
      if (last) {
#pragma unroll
        for (int n = 0; n < A::N8; ++n)
#pragma unroll
          for (int c = 0; c < 4; ++c) weights[n][c] = cross[n][c] = 0.0f;
      }
    }
  copy_wait<0>();
  write_rows<GRADIENT>(args, attention, rows, row0 + static_cast<uint32_t>(row_in_tile), part,
                       out * OUT_DEPTH);
  if (out == 0) ranks.write(args.ranks, args.num_rows, row0 + static_cast<uint32_t>(row_in_tile), part);
}

}  // namespace cpr
