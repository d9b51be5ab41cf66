// Where the elements of a quantized operand and its scales lie: the contract between the quantizers that write them and
// the attention kernels that read them. Every tile is written whole: rows past the sequence and channels past head_dim
// are zero, so that the kernels load without predicates. kHeadDim is head_dim padded to 64, 128 or 256.
#pragma once
#include <cstdint>

#include "common/macros.h"

namespace sage {

constexpr int kQTileRows = 128;  // query rows of a tile
constexpr int kKTileRows = 64;   // keys of a tile
constexpr int kQScaleRows = 32;  // a warp's rows: 8 scales, scale t for rows 8 i + t (SageAttention2, section 3.2)
constexpr int kQScalesPerTile = kQTileRows / kQScaleRows * 8;
constexpr int kKScalesPerTile = 4;  // scale t for the keys 8 i + 2 t and 8 i + 2 t + 1

SAGE_HD int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The tiles of one operand over all sequences. A buffer holds [head][tile][tile's bytes]; sequence b owns the tiles
// from first_tile(b) on. Packed sequences start at a tile of their own; up to one tile per sequence stays unused.
struct TileSpace {
  int64_t per_head;      // of all sequences together
  int64_t per_sequence;  // packed: of the longest
  bool packed;
};

// `seqlen` of every sequence, packed: of the longest; `total` rows of all packed sequences.
SAGE_HD TileSpace make_tile_space(int64_t seqlen, int64_t total, bool packed, int64_t batch, int tile_rows) {
  int64_t const per_sequence = ceil_div(seqlen, tile_rows);
  return {packed ? total / tile_rows + batch : batch * per_sequence, per_sequence, packed};
}

// `first_row` is the sequence's row in the packed tensor, cu_seqlens[b]; unused otherwise.
template <int kTileRows>
SAGE_HD int64_t first_tile(TileSpace const& tiles, int32_t b, int64_t first_row) {
  return tiles.packed ? first_row / kTileRows + b : b * tiles.per_sequence;
}

// INT8 Q: the A fragments of mma.m16n8k32 in the order in which lanes read them, 16 bytes a lane.
template <int kHeadDim>
SAGE_HD int q_int8_offset(int row, int d) {
  return row / 16 * 16 * kHeadDim + d / 32 * 512 + (row % 8 * 4 + d % 16 / 4) * 16 +
         (d % 32 / 16 * 2 + row % 16 / 8) * 4 + d % 4;
}

// INT8 K: panels of 16 channels by 64 keys. The 8 rows of an ldmatrix are 128 consecutive bytes: no bank conflict.
SAGE_HD int k_int8_offset(int key, int d) { return d / 16 * (kKTileRows * 16) + key * 16 + d % 16; }

// INT8 V: panels of 16 keys by 64 channels of V^T. Keys are scattered to the place that the accumulators of Q K^T
// have when they are read as A fragments of mma.m16n8k32: keys {2t, 2t+1, 2t+8, 2t+9} of 16 to 4t .. 4t+3.
SAGE_HD int v_int8_position(int key) { return key / 16 * 16 + key % 8 / 2 * 4 + key / 8 % 2 * 2 + key % 2; }
SAGE_HD int v_int8_offset(int key, int d) {
  int const position = v_int8_position(key);
  return d / 64 * (kKTileRows * 64) + position / 16 * 1024 + d % 64 * 16 + position % 16;
}

// Q scales: float [head][tile][kQScalesPerTile]; K scales: float [head][tile][kKScalesPerTile]; V scales: float
// [batch][head][kHeadDim]. Coarser granularities repeat a value. A q scale carries softmax_scale * log2(e).
SAGE_HD int q_scale_index(int row) { return row / kQScaleRows * 8 + row % 8; }
SAGE_HD int k_scale_index(int key) { return key % 8 / 2; }

// 16-bit V that is not read in place: row-major [head][tile][kKTileRows][kHeadDim].

}  // namespace sage
