// Where the elements of a quantized operand and its scales lie: the contract between the quantizers that write them and
// the attention kernels that read them. Every tile is written whole: rows past the sequence and channels past head_dim
// are zero, so that the kernels load without predicates. kHeadDim is head_dim padded to 64, 128 or 256.
#pragma once
#include <cstdint>

#include "common/macros.h"

namespace sage {

// The instructions that a kernel multiplies with, and for which its operands are arranged.
enum class OperandOrder : int32_t { kMmaSync, kWgmma, kBlockScaled };  // the last: common/nvfp4_format.h

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

// INT4: two channels share a byte, the even one in its low half, and bytes lie as those of INT8 would: the fragments of
// mma.m16n8k64 are those of m16n8k32 in bytes. A tile of K is two planes, each of k_int4_plane bytes and each laid out
// so: the codes, and, written and read only with smooth_q, 16ths of a step that the codes leave (-8..7): K is
// (code + rest / 16) * scale.
template <int kHeadDim>
SAGE_HD int q_int4_offset(int row, int d) {
  return q_int8_offset<kHeadDim / 2>(row, d / 2);
}
SAGE_HD int k_int4_offset(int key, int d) { return k_int8_offset(key, d / 2); }
template <int kHeadDim>
constexpr int k_int4_plane = kKTileRows * kHeadDim / 2;

// Bytes of a tile of Q and of K.
SAGE_HD int q_tile_bytes(int bits, int head_dim) { return kQTileRows * head_dim * bits / 8; }
SAGE_HD int k_tile_bytes(int head_dim) { return kKTileRows * head_dim; }

// The mean of the rows of a tile of Q (INT4 with smooth_q), as one integer of at most kQMeanLimit per channel, cut into
// four signed digits of 4 bits, the lowest first. Digit i is row i of an A fragment of mma.m16n8k64 of which only these
// rows are stored: [tile][k-step][digit][lane % 4][register 0 and 2].
constexpr float kQMeanLimit = 30583.f;                           // 7777 in hexadecimal digits
SAGE_HD int q_mean_bytes(int head_dim) { return 2 * head_dim; }  // of a tile
SAGE_HD int q_mean_offset(int digit, int d) {
  int const byte = d / 2;
  return byte / 32 * 128 + (digit * 4 + byte % 16 / 4) * 8 + byte % 32 / 16 * 4 + byte % 4;
}

// Rotation of Q and K (QuaRot, arXiv 2404.00456, section 3): channel c is multiplied by a fixed random sign, then the
// kHeadDim channels by the Hadamard matrix, (-1)^popcount(i & j) / sqrt(kHeadDim), of which the rows are in another
// order and some have the opposite sign, for Q and K alike. The product q . k stays what it was.
SAGE_HD float hadamard_sign(int channel) {
  static constexpr uint32_t kSigns[8] = {0x243F6A88u, 0x85A308D3u, 0x13198A2Eu, 0x03707344u,
                                         0xA4093822u, 0x299F31D0u, 0x082EFA98u, 0xEC4E6C89u};  // bits of pi
  return kSigns[channel / 32] >> channel % 32 & 1 ? -1.f : 1.f;
}
template <int kHeadDim>
constexpr float kHadamardFactor = kHeadDim == 64    ? .125f
                                  : kHeadDim == 128 ? .0883883476f
                                                    : .0625f;  // kHeadDim^-1/2

// 8-bit V (INT8 or e4m3): panels of 16 keys by 64 channels of V^T. Keys are scattered to the place that the
// accumulators of Q K^T have when they are read as A fragments of mma.m16n8k32: keys {2t, 2t+1, 2t+8, 2t+9} of 16 to 4t
// .. 4t+3.
SAGE_HD int v8_position(int key) { return key / 16 * 16 + key % 8 / 2 * 4 + key / 8 % 2 * 2 + key % 2; }
SAGE_HD int v8_offset(int key, int d) {
  int const position = v8_position(key);
  return d / 64 * (kKTileRows * 64) + position / 16 * 1024 + d % 64 * 16 + position % 16;
}

// INT8 Q and K and 8-bit V for wgmma are images of shared memory: rows, one behind another, whose chunks of 16 bytes
// have changed places so that the same chunk of 8 rows lies in different banks (PTX ISA, "Strides" and the 64- and
// 128-byte swizzling modes of section 9.7.15.5.1). Rows of 64 or 128 bytes.
template <int kRowBytes>
SAGE_HD int swizzled_offset(int row, int byte) {
  int const offset = row * kRowBytes + byte;
  return offset ^ (offset >> 3 & (kRowBytes - 16));
}

// A tile of K, and 64 rows of a tile of Q, which has two such images: panels of up to 128 channels.
constexpr int kWgmmaRows = 64;
template <int kHeadDim>
SAGE_HD int wgmma_offset(int row, int d) {
  constexpr int kPanel = kHeadDim < 128 ? kHeadDim : 128;
  return row / kWgmmaRows * (kWgmmaRows * kHeadDim) + d / kPanel * (kWgmmaRows * kPanel) +
         swizzled_offset<kPanel>(row % kWgmmaRows, d % kPanel);
}

// A tile of V^T: a row of 64 bytes for each channel, with the keys as v8_position has them.
SAGE_HD int v8_wgmma_offset(int key, int d) { return swizzled_offset<kKTileRows>(d, v8_position(key)); }

// Q scales: float [head][tile][kQScalesPerTile]; K scales: float [head][tile][kKScalesPerTile]; V scales: float
// [batch][head][kHeadDim]. Coarser granularities repeat a value. A q scale carries softmax_scale * log2(e).
SAGE_HD int q_scale_index(int row) { return row / kQScaleRows * 8 + row % 8; }
SAGE_HD int k_scale_index(int key) { return key % 8 / 2; }

// 16-bit V that is not read in place: row-major [head][tile][kKTileRows][kHeadDim].

}  // namespace sage
