// Q and K to NVFP4, V to NVFP4 or e4m3, as block-scaled instructions read them (common/nvfp4_format.h), in one grid:
// first the tiles of Q, then those of K, then those of V. A block reads its tile once, into registers, puts it together
// in shared memory and writes it whole; tiles beyond a sequence's end are not touched.
#pragma once
#include "quantize/nvfp4_k_tile.h"
#include "quantize/nvfp4_q_tile.h"
#include "quantize/nvfp4_v_tile.h"
#include "quantize/tile_grid.h"

namespace sage {

template <int kHeadDim>
struct QuantizeNvfp4 : quantize::TileGrid<kHeadDim, quantize::Nvfp4QTile<kHeadDim>, quantize::Nvfp4KTile<kHeadDim>,
                                          quantize::Nvfp4VTile<kHeadDim>> {
  static constexpr int kMinBlocksPerSm = 768 / quantize::Lanes<kHeadDim>::kThreads;  // 80 registers a thread
};

}  // namespace sage
