// A recipe names how the two matmuls of attention are quantized. Python's `sage.Recipe` carries the same fields.
#pragma once
#include <cstdint>

namespace sage {

// Operands of S = Q K^T.
enum class QkFormat : int32_t { kInt8, kInt4, kInt16, kNvfp4 };

// What shares one scale in Q and in K: a row; the rows one tensor-core thread owns (SageAttention2, section 3.2);
// the rows of a warp; the rows of a tile; 16 consecutive channels of a row (NVFP4).
enum class QkGranularity : int32_t { kToken, kThread, kWarp, kBlock, k1x16 };

// Operands of O = P V. kFp16 keeps V in its own 16-bit format. kInt8 is u8 P with s8 V.
enum class PvFormat : int32_t { kFp16, kInt8, kInt16, kFp8E4m3, kNvfp4 };

// The inner accumulator, or inner + outer where the inner one is folded into the outer one every fold_every steps.
enum class PvAccum : int32_t { kFp32, kFp16, kFp16Fp32, kFp32Fp32, kInt32 };

// In which order a row meets its keys. kReverse starts at the last one: a sink among the first keys then raises the
// maximum only after the other probabilities have been rounded (arXiv 2606.06521).
enum class KeyOrder : int32_t { kForward, kReverse };

struct Recipe {
  QkFormat qk = QkFormat::kInt8;
  QkGranularity qk_granularity = QkGranularity::kToken;
  PvFormat pv = PvFormat::kInt16;
  PvAccum pv_accum = PvAccum::kInt32;
  int32_t block_q = 128;  // query rows of a tile: what kBlock scales refer to
  int32_t block_k = 128;  // keys per online-softmax step; integer P has one scale per row and step
  // The quantized value that the largest probability of a step (kInt*) or row (else) maps to. With kNvfp4 Q and K it is
  // a power of two and the row's largest maps into (p_max / 2, p_max], or, while it grows, up to the format's end.
  float p_max = 8191.f;
  float v_max = 2047.f;      // the quantized value that the largest |v| of a scale group maps to; 0: V is not scaled
  bool v_per_block = false;  // V scales per block_k keys instead of per channel
  int32_t fold_every = 1;    // steps of block_k keys between folds of the inner accumulator into the outer one
  KeyOrder key_order = KeyOrder::kForward;
  bool p_two_level = false;  // NVFP4: P is scaled to p_max before its 1x16 blocks are (SageAttention3, section 3.2)
  bool smooth_q = false, smooth_k = true, smooth_v = false;  // subtract the mean before rounding, exactly undone
  bool approximate_exp = false;  // FP8 P: a quarter of its codes are linear in the score, not rounded exponentials
  bool hadamard = false;  // rotate Q and K by a random Hadamard matrix before rounding (QuaRot, arXiv 2404.00456)
};

}  // namespace sage
