// Forward attention on sm_120a: INT8 Q K^T; P V in FP8 by block-scaled instructions, whose scales are all 1. These add
// in float32 at the rate at which plain FP8 instructions add in fp16.
#pragma once
#include "arch/block_scaled.h"
#include "attention/mma_sync_fwd.cuh"
#include "tile/pv_accumulator_fp8.h"
#include "tile/qk.h"

namespace sage::sm120 {

enum class Mode { kMxfp8 };

template <int kHeadDim, Mode kMode, int kMTiles = kMTilesOfWarp<kHeadDim>>
using AttnFwd =
    MmaSyncFwd<kHeadDim, tile::QkInt8<kHeadDim, kMTiles>, tile::PvAccumFp8F32<kHeadDim, kMTiles, arch::E4m3Mma, false>>;

}  // namespace sage::sm120
