// A tile of V: 16-bit rows, or INT8 or e4m3 V^T.
#pragma once
#include <cmath>
#include <cstdint>

#include "arch/convert.h"
#include "arch/math.h"
#include "arch/simt.h"
#include "common/quant_format.h"
#include "quantize/params.h"
#include "quantize/shared_tile.h"
#include "quantize/tiles.h"
#include "quantize/v_scale.h"

namespace sage::quantize {

template <int kHeadDim>
struct VTile {
  using Lanes = quantize::Lanes<kHeadDim>;
  using VScale = quantize::VScale<kHeadDim>;

  struct SharedStorage : VScale::SharedStorage {
    SharedTile<kKTileRows * kHeadDim> tile;  // 8-bit V
  };

  SAGE_DEVICE static void write(QuantizeParams const& p, SharedStorage& shared, Place const& place) {
    Sequence const sequence = p.sequences[place.batch];
    if (p.v_format != VFormat::kCopy) {
      // Before the tile is known to have keys: the scales exist for sequences without any, too.
      VScale::load_scale(p, shared, place, sequence.seqlen_k, [&](float amax) {
        return p.v_format == VFormat::kFloat16 ? Scale::power_of_two(amax) : Scale::linear(amax, p.v_max);
      });
    }
    if (place.first_row >= sequence.seqlen_k) return;
    HeadRows const rows(p.v, place.batch, place.head, sequence.row_k + place.first_row,
                        sequence.seqlen_k - place.first_row, p.head_dim);
    if (p.v_format == VFormat::kInt8 || p.v_format == VFormat::kFp8E4m3) {
      store8(p, shared, place, rows);
    } else {
      store16(p, shared, place, rows);
    }
  }

 private:
  // Slot s has the keys s, s + kSlots, ...
  SAGE_DEVICE static void store16(QuantizeParams const& p, SharedStorage const& shared, Place const& place,
                                  HeadRows const& rows) {
    int const channel = Lanes::channel();
    auto const key = [](int j) { return Lanes::slot() + j * kSlots; };
    Channels x[4];
    rows.load(x, channel, key);
    uint16_t* const out = place.in(static_cast<uint16_t*>(p.v_out), kKTileRows * kHeadDim);
    SAGE_UNROLL for (int j = 0; j < 4; ++j) {
      if (p.v_format == VFormat::kFloat16) {
        float y[8];
        to_float(y, x[j], p.dtype);
        SAGE_UNROLL for (int c = 0; c < 8; c += 2) {
          x[j].pair[c / 2] =
              arch::pack_f16(y[c] * shared.inverse[channel + c], y[c + 1] * shared.inverse[channel + c + 1]);
        }
      }
      *reinterpret_cast<Channels*>(out + key(j) * kHeadDim + channel) = x[j];
    }
  }

  // Slot s has the keys of the positions 4 s .. 4 s + 3: a word of each of its channels. The tile is put together in
  // shared memory.
  SAGE_DEVICE static void store8(QuantizeParams const& p, SharedStorage& shared, Place const& place,
                                 HeadRows const& rows) {
    int const channel = Lanes::channel();
    auto const key = [](int j) { return Lanes::slot() / 4 * 16 + j / 2 * 8 + Lanes::slot() % 4 * 2 + j % 2; };
    Channels x[4];
    rows.load(x, channel, key);
    float y[4][8];
    SAGE_UNROLL for (int j = 0; j < 4; ++j)
      to_float(y[j], x[j], p.dtype);
    uint32_t existing = ~0u;  // bytes of a word
    if (p.v_mean) {
      SAGE_UNROLL for (int j = 0; j < 4; ++j) {
        if (!rows.has(key(j))) existing &= ~(0xffu << j * 8);
        SAGE_UNROLL for (int c = 0; c < 8; ++c)
          y[j][c] -= shared.mean[channel + c];
      }
    }
    uint32_t words[8];
    if (p.v_format == VFormat::kInt8) {
      SAGE_UNROLL for (int c = 0; c < 8; ++c)
        words[c] = quantize_int8x4(y[0][c], y[1][c], y[2][c], y[3][c], shared.inverse[channel + c]);
    } else {
      SAGE_UNROLL for (int c = 0; c < 8; ++c)
        words[c] = quantize_e4m3x4(y[0][c], y[1][c], y[2][c], y[3][c], shared.inverse[channel + c]);
    }
    bool const wgmma = p.order == OperandOrder::kWgmma;
    SAGE_UNROLL for (int c = 0; c < 8; ++c) {
      int const offset = wgmma ? v8_wgmma_offset(key(0), channel + c) : v8_offset(key(0), channel + c);
      *reinterpret_cast<uint32_t*>(shared.tile.at(offset)) = words[c] & existing;
    }
    arch::sync_block();  // the tile is complete
    shared.tile.template store<Lanes::kThreads, kKTileRows * kHeadDim>(
        place.in(static_cast<char*>(p.v_out), kKTileRows * kHeadDim));
  }
};

}  // namespace sage::quantize
