// Forward attention on sm_120a: INT8 Q K^T; P V in FP8 by block-scaled instructions, whose scales are all 1. These add
// in float32 at the rate at which plain FP8 instructions add in fp16.
#pragma once
#include <cute/arch/mma_sm120.hpp>

#include "attention/mma_sync_fwd.cuh"
#include "tile/pv_accumulator_fp8.h"
#include "tile/qk.h"

namespace sage::sm120 {

enum class Mode { kMxfp8 };

using Mxfp8 = cute::SM120::BLOCKSCALED::SM120_16x8x32_TN_VS<cute::float_e4m3_t, cute::float_e4m3_t, float,
                                                            cute::float_ue8m0_t, 32>;

template <int kHeadDim, Mode kMode, int kMTiles = kMTilesOfWarp<kHeadDim>>
using AttnFwd =
    MmaSyncFwd<kHeadDim, tile::QkInt8<kHeadDim, kMTiles>, tile::PvAccumFp8F32<kHeadDim, kMTiles, Mxfp8, false>>;

}  // namespace sage::sm120
