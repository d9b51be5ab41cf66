// How the blocks of a persistent kernel divide the work among them.
#pragma once
#include <cstdint>

#include "arch/simt.h"
#include "attention/params.h"
#include "common/mask.h"
#include "common/quant_format.h"

namespace sage {

// A block takes one item after another: a piece of kParts * kRows query rows of a head, of which each of its parts
// (warpgroups) has kRows. All parts go through the same keys, kKeys a step.
template <int kHeadDim, int kParts, int kRows, int kKeys>
struct Work {
  static constexpr int kItemRows = kParts * kRows;

  // Of steps, in the order in which they are taken.
  struct Interval {
    int32_t begin, count;

    SAGE_DEVICE bool has(int32_t step) const {
      return static_cast<uint32_t>(step - begin) < static_cast<uint32_t>(count);
    }
  };

  // A part of an item.
  struct Place {
    Sequence sequence;
    int64_t row;  // of the sequence, of the part's first query
    int32_t batch, head, head_kv;
    int32_t first, direction;  // keys of the first step, in units of kKeys; the next is `direction` further
    int32_t steps;             // of the item; -1 where there is no item left
    Interval whole;            // in which every row of the part sees all keys
    Interval seen;             // in which some row sees a key

    SAGE_DEVICE Mask visible(AttnParams const& p) const {
      return {sequence.seqlen_q, sequence.seqlen_k, p.causal, p.window_left, p.window_right};
    }
  };

  // One for each item where there are so many that their numbers do not fit 31 bits: the launch is then refused.
  static int64_t num_blocks(AttnParams const& p) {
    int64_t const items = int64_t{num_pieces(p)} * p.num_heads_q * p.batch;
    return items > INT32_MAX || items < p.sm_count ? items : p.sm_count;
  }

  // The part's place in item number `round` of this block.
  SAGE_DEVICE static void find(AttnParams const& p, uint32_t round, int part, Place& x) {
    Item item;
    if (!find(p, round, item)) {
      x.steps = -1;
      return;
    }
    x.batch = static_cast<int32_t>(item.head / p.num_heads_q);
    x.head = static_cast<int32_t>(item.head % p.num_heads_q);
    x.head_kv = x.head / (p.num_heads_q / p.num_heads_kv);
    Sequence const s = x.sequence = p.sequences[x.batch];
    int64_t const first_row = int64_t{item.piece} * kItemRows;
    x.row = first_row + part * kRows;
    Mask const mask = x.visible(p);
    auto const last_of = [&](int64_t row, int rows) {
      return row + rows < s.seqlen_q ? row + rows - 1 : s.seqlen_q - 1;
    };
    // Steps that a row sees, counted from the first key: [begin, end).
    auto const begin_of = [&](int64_t row) { return static_cast<int32_t>(mask.col_begin(row) / kKeys); };
    auto const end_of = [&](int64_t row) { return static_cast<int32_t>(ceil_div(mask.col_end(row), kKeys)); };
    int32_t const begin = begin_of(first_row), end = end_of(last_of(first_row, kItemRows));
    x.steps = first_row < s.seqlen_q && begin < end ? end - begin : 0;
    x.first = p.reverse_keys ? end - 1 : begin;
    x.direction = p.reverse_keys ? -1 : 1;
    auto const interval = [&](int32_t from, int32_t to) {
      from = from < begin ? begin : from;
      to = to > end ? end : to;
      return Interval{p.reverse_keys ? end - to : from - begin, from < to ? to - from : 0};
    };
    bool const exists = x.row < s.seqlen_q;
    int64_t const last = last_of(x.row, kRows);
    x.seen = x.whole = {0, 0};
    if (exists) x.seen = interval(begin_of(x.row), end_of(last));
    if (exists && !p.mask.data) {
      x.whole = interval(static_cast<int32_t>(ceil_div(mask.col_begin(last), kKeys)),
                         static_cast<int32_t>(mask.col_end(x.row) / kKeys));
    }
  }

 private:
  struct Item {
    uint32_t head, piece;  // a head of all sequences, and which of its rows
  };

  // Pieces of a head.
  SAGE_HD static uint32_t num_pieces(AttnParams const& p) {
    return (static_cast<uint32_t>(ceil_div(p.sequences.seqlen_q, kRows)) + kParts - 1) / kParts;
  }

  // False where there is none. Heads come in groups whose K and V stay in the L2 cache. Under a causal mask the last
  // rows of a head have the most keys: of a group come first the last rows of all its heads, or the first ones, so that
  // the work of items grows and shrinks without jumps and is least at the end. Blocks take items in turns, and every
  // second time in the opposite order, so that whoever had the largest of a round gets the smallest of the next.
  SAGE_DEVICE static bool find(AttnParams const& p, uint32_t round, Item& item) {
    constexpr uint32_t kCachedTiles = (32 << 20) / (2 * kKTileRows * kHeadDim);  // in 32 of the 50 MB of an H100
    uint32_t const pieces = num_pieces(p), heads = p.num_heads_q * p.batch;
    uint32_t const tiles = static_cast<uint32_t>(p.k_tiles.per_sequence);
    uint32_t const heads_kv = tiles == 0 ? p.num_heads_kv : tiles < kCachedTiles ? kCachedTiles / tiles : 1;
    uint32_t const all = heads_kv * (p.num_heads_q / p.num_heads_kv), group = all < heads ? all : heads;
    uint32_t const blocks = arch::num_blocks(), block = arch::block_index();
    uint32_t const index = round * blocks + (round % 2 ? blocks - 1 - block : block);
    if (index >= heads * pieces) return false;
    uint32_t const number = index / (group * pieces), first = number * group;
    uint32_t const size = heads - first < group ? heads - first : group, rest = index - first * pieces;
    bool const down = ((heads + group - 1) / group - number) % 2;  // the last group does
    item.head = first + rest % size;
    item.piece = down ? pieces - 1 - rest / size : rest / size;
    return true;
  }
};

}  // namespace sage
