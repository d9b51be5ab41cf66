// A grid of blocks that write a tile each: first the tiles of Q, then those of K, then those of V.
#pragma once
#include <cstdint>

#include "arch/simt.h"
#include "common/quant_format.h"
#include "quantize/params.h"
#include "quantize/tiles.h"

namespace sage::quantize {

template <int kHeadDim, class QTile, class KTile, class VTile>
struct TileGrid {
  static constexpr int kThreads = Lanes<kHeadDim>::kThreads;
  using Params = QuantizeParams;

  union SharedStorage {
    typename QTile::SharedStorage q;
    typename KTile::SharedStorage k;
    typename VTile::SharedStorage v;
  };

  static int64_t num_blocks(Params const& p) {
    return q_blocks(p) + k_blocks(p) * (p.v_format == VFormat::kInPlace ? 1 : 2);
  }

  SAGE_DEVICE void operator()(Params const& p, char* smem) const {
    SharedStorage& shared = *reinterpret_cast<SharedStorage*>(smem);
    uint32_t const block = arch::block_index(), first_k = static_cast<uint32_t>(q_blocks(p)),
                   first_v = first_k + static_cast<uint32_t>(k_blocks(p));
    Sequences const& s = p.sequences;
    if (block < first_k) {
      if (block == 0 && p.fold_busy) {
        for (int i = arch::thread_index(); i < p.fold_slots; i += kThreads) p.fold_busy[i] = 0;
      }
      QTile::write(p, shared.q, Place::find<kQTileRows>(p.q_tiles, p.batch, s.cu_seqlens_q, block));
    } else if (block < first_v) {
      KTile::write(p, shared.k, Place::find<kKTileRows>(p.k_tiles, p.batch, s.cu_seqlens_k, block - first_k));
    } else {
      VTile::write(p, shared.v, Place::find<kKTileRows>(p.k_tiles, p.batch, s.cu_seqlens_k, block - first_v));
    }
  }

 private:
  SAGE_HD static int64_t q_blocks(Params const& p) {
    return p.q_out ? Place::num_blocks(p.q_tiles, p.batch, p.num_heads_q) : 0;
  }
  SAGE_HD static int64_t k_blocks(Params const& p) {
    return p.k_out ? Place::num_blocks(p.k_tiles, p.batch, p.num_heads_kv) : 0;
  }
};

}  // namespace sage::quantize
