// A tile of V: 16-bit rows, or INT8 or e4m3 V^T.
#pragma once
#include <cmath>
#include <cstdint>

#include "arch/convert.h"
#include "arch/math.h"
#include "arch/simt.h"
#include "common/quant_format.h"
#include "quantize/params.h"
#include "quantize/tiles.h"

namespace sage::quantize {

template <int kHeadDim>
struct VTile {
  using Lanes = quantize::Lanes<kHeadDim>;

  struct SharedStorage {
    alignas(16) float mean[kHeadDim], inverse[kHeadDim];  // of the scales
    alignas(16) char tile[kKTileRows * kHeadDim];         // 8-bit V, chunks of 16 bytes permuted by chunk_place
  };

  SAGE_DEVICE static void write(QuantizeParams const& p, SharedStorage& shared, Place const& place) {
    Sequence const sequence = p.sequences[place.batch];
    if (p.v_format != VFormat::kCopy) {
      // Before the tile is known to have keys: the scales exist for sequences without any, too.
      load_scale(p, shared, place, sequence.seqlen_k);
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
      *reinterpret_cast<uint32_t*>(shared.tile + chunk_place(offset / 16) * 16 + offset % 16) = words[c] & existing;
    }
    arch::sync_block();  // the tile is complete
    auto* const out = place.in(static_cast<Channels*>(p.v_out), kKTileRows * kHeadDim / 16);
    SAGE_UNROLL for (int i = 0; i < kKTileRows * kHeadDim / 16; i += Lanes::kThreads) {
      int const chunk = i + arch::thread_index();
      out[chunk] = reinterpret_cast<Channels const*>(shared.tile)[chunk_place(chunk)];
    }
  }

  // Where a chunk of 16 bytes lies in shared memory: the same channel of 8 lanes, whose chunks are 8 or, for wgmma, 32
  // apart, falls in different banks.
  SAGE_DEVICE static int chunk_place(int chunk) { return chunk ^ ((chunk / 8 ^ chunk / 32) % 8); }

  // The mean and the inverse scales of V; the block of the sequence's first tile stores both. Ends with a barrier.
  SAGE_DEVICE static void load_scale(QuantizeParams const& p, SharedStorage& shared, Place const& place,
                                     int64_t seqlen_k) {
    int const channel = arch::thread_index();
    if (channel < kHeadDim) {
      auto const combine = [&](float x, float const* stats, auto const& op) {
        for_each_chunk<kHeadDim>(p, stats, place.batch, place.head, [&](float y) { x = op(x, y); });
        return x;
      };
      auto const larger = [](float x, float y) { return arch::max_nan(x, y); };
      float amax = combine(p.v_mean ? -INFINITY : 0.f, p.v_amax, larger), mean = 0.f;
      if (p.v_mean) {
        float const sum = combine(0.f, p.v_sum, [](float x, float y) { return x + y; });
        float const low = -combine(-INFINITY, p.v_low, [](float x, float y) { return arch::max_nan(x, -y); });
        mean = seqlen_k > 0 ? sum / static_cast<float>(seqlen_k) : 0.f;
        amax = arch::max_nan(amax - mean, mean - low);
        shared.mean[channel] = mean;
      }
      Scale const scale = p.v_format == VFormat::kFloat16 ? Scale::power_of_two(amax) : Scale::linear(amax, p.v_max);
      shared.inverse[channel] = scale.inverse;
      if (place.first_row == 0) {
        int64_t const i = (int64_t{place.batch} * p.num_heads_kv + place.head) * kHeadDim + channel;
        p.v_scale[i] = scale.scale;
        if (p.v_mean) p.v_mean[i] = mean;
      }
    }
    arch::sync_block();  // the inverse scales of all channels are visible
  }
};

}  // namespace sage::quantize
