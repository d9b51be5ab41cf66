// A tile of K: smoothed, rotated, rounded to NVFP4; and what that leaves, likewise.
#pragma once
#include <cstdint>

#include "arch/convert.h"
#include "arch/math.h"
#include "arch/simt.h"
#include "common/nvfp4_format.h"
#include "quantize/k_rows.h"
#include "quantize/nvfp4_block.h"
#include "quantize/params.h"
#include "quantize/shared_tile.h"
#include "quantize/tiles.h"

namespace sage::quantize {

template <int kHeadDim>
struct Nvfp4KTile {
  using KRows = quantize::KRows<kHeadDim>;
  using Lanes = typename KRows::Lanes;
  static constexpr int kPlane = nvfp4_bytes(kKTileRows, kHeadDim);
  static_assert(kKTileRows == 4 * kSlots, "a slot has 4 keys");

  struct SharedStorage : KRows::SharedStorage {
    float amax[Lanes::kThreads / 32];  // of the warps
    SharedTile<2 * kPlane> tile;
  };

  SAGE_DEVICE static void write(QuantizeParams const& p, SharedStorage& shared, Place const& place) {
    Sequence const sequence = p.sequences[place.batch];
    if (place.first_row >= sequence.seqlen_k) return;
    HeadRows const rows(p.k, place.batch, place.head, sequence.row_k + place.first_row,
                        sequence.seqlen_k - place.first_row, p.head_dim);
    float y[4][8], amax[4], largest = 0.f;
    KRows::load(y, p, shared, place, rows, key);
    SAGE_UNROLL for (int j = 0; j < 4; ++j) {
      amax[j] = block_amax(y[j]);
      largest = arch::max_nan(largest, amax[j]);
    }
    Scale const scale = nvfp4_scale(max_of_block<Lanes::kThreads>(shared.amax, largest));
    if (arch::thread_index() < kKScalesPerTile) {
      place.in(p.k_scale, kKScalesPerTile)[arch::thread_index()] = scale.scale;
    }

    put(shared, 0, y, amax, scale.inverse, p.smooth_q);
    if (p.smooth_q) {
      SAGE_UNROLL for (int j = 0; j < 4; ++j)
        amax[j] = block_amax(y[j]);
      put(shared, kPlane, y, amax, unit_inverse(scale.inverse), false);
    }
    arch::sync_block();  // the tile is complete
    char* const out = place.in(p.k_out, p.smooth_q ? 2 * kPlane : kPlane);
    shared.tile.template store<Lanes::kThreads, kPlane>(out);
    if (p.smooth_q) shared.tile.template store<Lanes::kThreads, kPlane>(out + kPlane, kPlane);
  }

 private:
  // Slot s has the keys s, s + kSlots, ...
  SAGE_DEVICE static int key(int j) { return Lanes::slot() + j * kSlots; }

  // Puts NVFP4 of y * inverse into the plane at `plane`, and what it leaves into y if that is wanted.
  SAGE_DEVICE static void put(SharedStorage& shared, int plane, float (&y)[4][8], float const (&amax)[4], float inverse,
                              bool subtract) {
    int const channel = Lanes::channel();
    uint32_t const scales = block_scales(amax[0], amax[1], amax[2], amax[3], inverse);
    SAGE_UNROLL for (int j = 0; j < 4; ++j) {
      float const scale = block_scale(scales, j);
      uint32_t const codes = quantize_e2m1x8(y[j], block_inverse(scale, inverse));
      *reinterpret_cast<uint32_t*>(shared.tile.at(plane + k_nvfp4_offset<kHeadDim>(key(j), channel))) = codes;
      if (channel % kNvfp4Block == 0) {
        *shared.tile.at(plane + k_nvfp4_scale_offset<kHeadDim>(key(j), channel)) = static_cast<char>(scales >> 8 * j);
      }
      if (subtract) subtract_block(y[j], inverse, codes, scale);
    }
  }
};

}  // namespace sage::quantize
