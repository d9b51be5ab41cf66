// Q and K to INT8 or INT4, V to the format that P V wants (common/quant_format.h), in one grid: first the tiles of Q,
// then those of K, then those of V. A block reads its tile once, into registers, and writes it whole; tiles beyond a
// sequence's end are not touched.
//
// Which rows a slot of threads reads (quantize/tiles.h) is chosen so that they belong to one scale group and lie
// together in the output: largest magnitudes need lane shuffles and one exchange between slots, and stores are 16 bytes
// a lane.
#pragma once
#include "quantize/k_tile.h"
#include "quantize/q_tile.h"
#include "quantize/tile_grid.h"
#include "quantize/v_tile.h"

namespace sage {

template <int kHeadDim>
struct QuantizeQkv
    : quantize::TileGrid<kHeadDim, quantize::QTile<kHeadDim>, quantize::KTile<kHeadDim>, quantize::VTile<kHeadDim>> {
  static constexpr int kMinBlocksPerSm = 1024 / quantize::Lanes<kHeadDim>::kThreads;
};

}  // namespace sage
