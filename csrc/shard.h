// What one process does in a cascade over a queue that several share: lists of entries, counted and cut.
// Raw pointers; no torch.
#pragma once
#include <cstdint>

#include "cascade_topk.h"

namespace cpr {

// A query's entries in ascending index order: `rows` score rows and their indices, `pitch` places apart.
struct EntryLists {
  float* scores;    // [B, rows, pitch]
  int32_t* index;   // [B, pitch]
  int64_t* length;  // [B]
  int64_t num_queries;
  int rows;
  int64_t pitch;  // at least LIST_SLACK more than the entries that a list may hold
  int threads;
};
constexpr int64_t LIST_SLACK = 16;  // lanes of the widest instruction set

// A step of the search for the m-th highest score, on its ascending key (ranking.h), `bits` at a time.
struct DigitSearch {
  const int32_t* prefix;  // [B] the key's bits above this digit; unread at the first digit
  int shift, bits;        // the digit is (key >> shift) % 2^bits
  int step;               // 0: the first digit
  uint32_t* matching;     // [B, pitch] keys that share the prefix, kept from the second digit on
  int64_t* matches;       // [B]
};

// Every entry that a query may select, with its score by each of args.num_stages rows of args.weights, which
// are distinct but for the last where args.key_bias is added to it. False when there is no memory to be had.
// args.keep and the outputs of args are unread.
bool collect_entries_cpu(const CascadeArgs& args, const EntryLists& out);

// counts [B, 2^bits]: entries of score row `row` by their next digit.
void count_digits_cpu(const EntryLists& lists, int row, const DigitSearch& search, int32_t* counts);

// Keep what scores above `cut` [B] (an ascending key) by score row `row`, and the first `ties` [B] of the
// entries at it; ties < 0 keeps everything.
void keep_above_cpu(const EntryLists& lists, int row, const int32_t* cut, const int32_t* ties);

}  // namespace cpr
