// Forward attention from sm_89 on: INT8 or INT4 Q K^T, e4m3 P V (SageAttention2, sections 3.2 and 4.3;
// SageAttention2++).
#pragma once
#include <type_traits>

#include "attention/mma_sync_fwd.cuh"
#include "tile/pv_accumulator_fp8.h"
#include "tile/qk.h"

namespace sage::sm89 {

// Operands of Q K^T, where they are not INT8, operands of P V, and its accumulators, where they are not float32.
enum class Mode { kFp8, kFp8F16Acc, kInt4Fp8, kInt4Fp8F16Acc };

template <int kHeadDim, int kMTiles, Mode kMode>
using Qk = std::conditional_t<kMode == Mode::kInt4Fp8 || kMode == Mode::kInt4Fp8F16Acc, tile::QkInt4<kHeadDim, kMTiles>,
                              tile::QkInt8<kHeadDim, kMTiles>>;
template <int kHeadDim, int kMTiles, Mode kMode>
using PvAccum = std::conditional_t<kMode == Mode::kFp8F16Acc || kMode == Mode::kInt4Fp8F16Acc,
                                   tile::PvAccumFp8F16<kHeadDim, kMTiles>,
                                   tile::PvAccumFp8F32<kHeadDim, kMTiles, cute::SM89_16x8x32_F32E4M3E4M3F32_TN, true>>;

template <int kHeadDim, Mode kMode, int kMTiles = kMTilesOfWarp<kHeadDim>>
using AttnFwd = MmaSyncFwd<kHeadDim, Qk<kHeadDim, kMTiles, kMode>, PvAccum<kHeadDim, kMTiles, kMode>>;

}  // namespace sage::sm89
