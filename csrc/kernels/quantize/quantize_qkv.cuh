// Q and K to INT8 or INT4, V to the format that P V wants (common/quant_format.h), in one grid: first the tiles of Q,
// then those of K, then those of V. A block reads its tile once, into registers, and writes it whole; tiles beyond a
// sequence's end are not touched.
//
// Which rows a slot of threads reads (quantize/tiles.h) is chosen so that they belong to one scale group and lie
// together in the output: largest magnitudes need lane shuffles and one exchange between slots, and stores are 16 bytes
// a lane.
#pragma once
#include <cstdint>

#include "arch/simt.h"
#include "common/quant_format.h"
#include "quantize/k_tile.h"
#include "quantize/params.h"
#include "quantize/q_tile.h"
#include "quantize/tiles.h"
#include "quantize/v_tile.h"

namespace sage {

template <int kHeadDim>
struct QuantizeQkv {
  using Place = quantize::Place;
  using QTile = quantize::QTile<kHeadDim>;
  using KTile = quantize::KTile<kHeadDim>;
  using VTile = quantize::VTile<kHeadDim>;
  static constexpr int kThreads = quantize::Lanes<kHeadDim>::kThreads, kMinBlocksPerSm = 1024 / kThreads;
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

}  // namespace sage
