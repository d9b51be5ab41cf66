// NVFP4 operands (SageAttention3, section 3.1; NVIDIA's "NVFP4"): e2m1 values with a ue4m3 scale for each block of 16
// along the dimension that is summed over: channels of Q and K, keys of V. What a tile's values and scales together are
// still to be multiplied by is a power of two: one float32 of a tile of Q, of a tile of K, and of a channel of V. It brings the largest magnitude into (kNvfp4Max / 2, kNvfp4Max], if that is not below 2^-104, and is all that large or
// small tensors take.
//
// A block's scale is its largest magnitude / 6, rounded to e4m3; values are multiplied by the inverse of the rounded scale, as a float32. An all-zero
// block has the scale 0. One with a value that is not finite has the scale NaN; the power of two is NaN, too, and all
// that share it have values 0 and, if their block is finite, scale 0.
//
// Tiles are those of common/quant_format.h, with values and then scales. Both lie in the order in which lanes read them
// as fragments of mma.m16n8k64 with scale_vec::4X (PTX ISA, section 9.7.14.5.14): lane 4 g + q, 8 values a register,
// value i of it in bits 4 i .. 4 i + 3. Offsets are of the byte with a value; that of an even channel (of V, key) is
// its lower half.
#pragma once
#include <cstdint>

#include "common/quant_format.h"

namespace sage {

constexpr int kNvfp4Block = 16;
constexpr float kE2m1Max = 6.f, kNvfp4Max = 448.f * kE2m1Max;

// Bytes of `rows` rows of `head_dim` channels: values, and values with scales.
SAGE_HD constexpr int nvfp4_values(int rows, int head_dim) { return rows * head_dim / 2; }
SAGE_HD constexpr int nvfp4_bytes(int rows, int head_dim) {
  return nvfp4_values(rows, head_dim) + rows * head_dim / kNvfp4Block;
}

// Q: A fragments, [16 rows][64 channels][lane][4 registers]. Register r + 2 h of lane 4 g + q has row g + 8 r, channels
// 32 h + 8 q .. 32 h + 8 q + 7.
template <int kHeadDim>
SAGE_HD int q_nvfp4_offset(int row, int d) {
  return (row / 16 * (kHeadDim / 64) + d / 64) * 512 + (row % 8 * 4 + d % 32 / 8) * 16 +
         (row % 16 / 8 + d % 64 / 32 * 2) * 4 + d % 8 / 2;
}
// Its scales: a word for each row and 64 channels, [16 rows][64 channels][row].
template <int kHeadDim>
SAGE_HD int q_nvfp4_scale_offset(int row, int d) {
  return nvfp4_values(kQTileRows, kHeadDim) + (row / 16 * (kHeadDim / 64) + d / 64) * 64 + row % 16 * 4 +
         d % 64 / kNvfp4Block;
}

// Keys are columns of Q K^T in such an order that the accumulators of four instructions, which a lane has of a row, are
// those of 8 successive keys: a register of an A fragment of P V. Keys 8 q .. 8 q + 7 of 32 are the columns 2 q and
// 2 q + 1 of the instructions 0 to 3 (SageAttention3, section 3.3).
SAGE_HD int nvfp4_instruction(int key) { return key / 32 * 4 + key % 8 / 2; }  // of 8 for a tile
SAGE_HD int nvfp4_column(int key) { return key % 32 / 8 * 2 + key % 2; }

// K: B fragments, [instruction][lane][64 channels][2 registers]. Register h of lane 4 g + q has column g, channels
// 32 h + 8 q .. 32 h + 8 q + 7. With smooth_q a second plane of nvfp4_bytes(kKTileRows, kHeadDim) follows, laid out
// likewise: what the values of the first leave of K, as NVFP4 again.
template <int kHeadDim>
SAGE_HD int k_nvfp4_offset(int key, int d) {
  return (nvfp4_instruction(key) * 32 + nvfp4_column(key) * 4 + d % 32 / 8) * (kHeadDim / 8) + d / 64 * 8 +
         d % 64 / 32 * 4 + d % 8 / 2;
}
// Its scales: lane 4 g + q has column g of the instructions q and 4 + q, a word for each 64 channels.
template <int kHeadDim>
SAGE_HD int k_nvfp4_scale_offset(int key, int d) {
  int const lane = nvfp4_column(key) * 4 + nvfp4_instruction(key) % 4;
  return nvfp4_values(kKTileRows, kHeadDim) + lane * (kHeadDim / 8) + key / 32 * (kHeadDim / 16) + d / 64 * 4 +
         d % 64 / kNvfp4Block;
}

// V^T: B fragments of 8 channels by 64 keys, [16 channels][lane][8 channels][2 registers]. Register h of lane 4 g + q
// has channel g, keys 32 h + 8 q .. 32 h + 8 q + 7.
SAGE_HD int v_nvfp4_offset(int key, int d) {
  return (d / 16 * 32 + d % 8 * 4 + key % 32 / 8) * 16 + d % 16 / 8 * 8 + key / 32 * 4 + key % 8 / 2;
}
// Its scales: lane 4 g + q has channel g of the fragments q, 4 + q, 8 + q ..., a word (4 blocks of keys) each.
template <int kHeadDim>
SAGE_HD int v_nvfp4_scale_offset(int key, int d) {
  return nvfp4_values(kKTileRows, kHeadDim) + (d % 8 * 4 + d / 8 % 4) * (kHeadDim / 8) + d / 32 * 4 + key / kNvfp4Block;
}

// e4m3 V^T for the same P: B fragments of mma.m16n8k32, [32 keys][16 channels][lane][8 channels][2 registers];
// registers 0 and 1 of lane 4 g + q have channel g, keys 8 q .. 8 q + 3 and 8 q + 4 .. 8 q + 7. Bytes, scales are per
// channel.
template <int kHeadDim>
SAGE_HD int v8_block_scaled_offset(int key, int d) {
  return key / 32 * (32 * kHeadDim) + (d / 16 * 32 + d % 8 * 4 + key % 32 / 8) * 16 + d % 16 / 8 * 8 + key % 8;
}

// The mean of the rows of a tile of Q (smooth_q) as a sum of kQMeanDigits NVFP4 rows, each what those before it leave;
// the power of two is the tile's. Digit i is column i of B fragments of which only these columns are stored: values [64
// channels][lane 4 i + q][2 registers], then scales [64 channels][digit], a word each.
constexpr int kQMeanDigits = 4;
SAGE_HD constexpr int q_mean_nvfp4_bytes(int head_dim) { return head_dim / 64 * (128 + 16); }  // of a tile
template <int kHeadDim>
SAGE_HD int q_mean_nvfp4_offset(int digit, int d) {
  return d / 64 * 128 + (digit * 4 + d % 32 / 8) * 8 + d % 64 / 32 * 4 + d % 8 / 2;
}
template <int kHeadDim>
SAGE_HD int q_mean_nvfp4_scale_offset(int digit, int d) {
  return kHeadDim / 64 * 128 + d / 64 * 16 + digit * 4 + d % 64 / kNvfp4Block;
}

}  // namespace sage
