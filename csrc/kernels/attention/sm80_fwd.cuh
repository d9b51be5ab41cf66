// Forward attention from sm_80 on: INT8 or INT4 Q K^T; P V in fp16, bf16 or INT8 (SageAttention, sections 4.2 to 4.4;
// SageAttention2, section 3.1).
#pragma once
#include <type_traits>

#include "attention/mma_sync_fwd.cuh"
#include "tile/pv_accumulator.h"
#include "tile/qk.h"

namespace sage::sm80 {

// Operands of Q K^T, where they are not INT8, and operands and accumulators of P V.
enum class Mode { kF16, kBf16, kF16AccF16, kF16AccF16F32, kInt8, kInt4F16, kInt4Bf16 };

template <int kHeadDim, int kMTiles, Mode kMode>
struct PvAccum;
template <int kHeadDim, int kMTiles>
struct PvAccum<kHeadDim, kMTiles, Mode::kF16> : tile::PvAccumF32<kHeadDim, kMTiles, false> {};
template <int kHeadDim, int kMTiles>
struct PvAccum<kHeadDim, kMTiles, Mode::kBf16> : tile::PvAccumF32<kHeadDim, kMTiles, true> {};
template <int kHeadDim, int kMTiles>
struct PvAccum<kHeadDim, kMTiles, Mode::kF16AccF16> : tile::PvAccumF16<kHeadDim, kMTiles> {};
template <int kHeadDim, int kMTiles>
struct PvAccum<kHeadDim, kMTiles, Mode::kF16AccF16F32> : tile::PvAccumF16F32<kHeadDim, kMTiles> {};
template <int kHeadDim, int kMTiles>
struct PvAccum<kHeadDim, kMTiles, Mode::kInt8> : tile::PvAccumInt8<kHeadDim, kMTiles> {};
template <int kHeadDim, int kMTiles>
struct PvAccum<kHeadDim, kMTiles, Mode::kInt4F16> : PvAccum<kHeadDim, kMTiles, Mode::kF16> {};
template <int kHeadDim, int kMTiles>
struct PvAccum<kHeadDim, kMTiles, Mode::kInt4Bf16> : PvAccum<kHeadDim, kMTiles, Mode::kBf16> {};

template <int kHeadDim, int kMTiles, Mode kMode>
using Qk = std::conditional_t<kMode == Mode::kInt4F16 || kMode == Mode::kInt4Bf16, tile::QkInt4<kHeadDim, kMTiles>,
                              tile::QkInt8<kHeadDim, kMTiles>>;

template <int kHeadDim, Mode kMode, int kMTiles = kMTilesOfWarp<kHeadDim>>
using AttnFwd = MmaSyncFwd<kHeadDim, Qk<kHeadDim, kMTiles, kMode>, PvAccum<kHeadDim, kMTiles, kMode>>;

}  // namespace sage::sm80
