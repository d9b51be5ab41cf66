// Q and K to INT8, V to the format that P V wants (common/quant_format.h), in one grid: first the tiles of Q, then
// those of K, then those of V. A block reads its tile once, into registers, and writes it whole; tiles beyond a
// sequence's end are not touched.
//
// Which rows a slot of threads reads (quantize/tiles.h) is chosen so that they belong to one scale group and lie
// together in the output: largest magnitudes need lane shuffles and one exchange between slots, and stores are 16 bytes
// a lane.
#pragma once
#include <cmath>
#include <cstdint>

#include "arch/convert.h"
#include "arch/math.h"
#include "arch/simt.h"
#include "common/numerics.h"
#include "common/quant_format.h"
#include "quantize/params.h"
#include "quantize/tiles.h"

namespace sage {

template <int kHeadDim>
struct QuantizeQkv {
  using Lanes = quantize::Lanes<kHeadDim>;
  using Channels = quantize::Channels;
  using Place = quantize::Place;
  using Scale = quantize::Scale;
  static constexpr int kSlots = quantize::kSlots;
  static constexpr int kThreads = Lanes::kThreads, kMinBlocksPerSm = 1024 / kThreads;
  static constexpr int kQGroups = kQScalesPerTile / kSlots;  // of a slot; 4 rows each
  static constexpr float kLimit = 127.f;
  static_assert(kQTileRows == 4 * kQScalesPerTile && kKTileRows == 4 * kSlots, "a group of a slot has 4 rows");
  using Params = QuantizeParams;

  struct SharedStorage {
    float channel[kHeadDim];                    // mean of K, or inverse scales of V
    float amax[kQScalesPerTile];                // of the groups of a tile; those that share a scale are neighbours
    alignas(16) char v[kKTileRows * kHeadDim];  // INT8 V, chunks of 16 bytes permuted by v_chunk
  };

  static int64_t num_blocks(Params const& p) { return q_blocks(p) + k_blocks(p) * (writes_v(p) ? 2 : 1); }

  SAGE_DEVICE void operator()(Params const& p, char* smem) const {
    SharedStorage& shared = *reinterpret_cast<SharedStorage*>(smem);
    uint32_t const block = arch::block_index(), first_k = static_cast<uint32_t>(q_blocks(p)),
                   first_v = first_k + static_cast<uint32_t>(k_blocks(p));
    Sequences const& s = p.sequences;
    if (block < first_k) {
      quantize_q(p, shared, Place::find<kQTileRows>(p.q_tiles, p.batch, s.cu_seqlens_q, block));
    } else if (block < first_v) {
      quantize_k(p, shared, Place::find<kKTileRows>(p.k_tiles, p.batch, s.cu_seqlens_k, block - first_k));
    } else {
      quantize_v(p, shared, Place::find<kKTileRows>(p.k_tiles, p.batch, s.cu_seqlens_k, block - first_v));
    }
  }

 private:
  SAGE_HD static int64_t q_blocks(Params const& p) {
    return p.q_out ? Place::num_blocks(p.q_tiles, p.batch, p.num_heads_q) : 0;
  }
  SAGE_HD static int64_t k_blocks(Params const& p) {
    return p.k_out ? Place::num_blocks(p.k_tiles, p.batch, p.num_heads_kv) : 0;
  }
  SAGE_HD static bool writes_v(Params const& p) { return p.v_format != VFormat::kInPlace; }

  // Group g of a tile has the rows g / 8 * 32 + 8 j + g % 8; slot s has the groups s and s + kSlots.
  SAGE_DEVICE static void quantize_q(Params const& p, SharedStorage& shared, Place const& place) {
    Sequence const sequence = p.sequences[place.batch];
    if (place.first_row >= sequence.seqlen_q) return;
    quantize::HeadRows const rows(p.q, place.batch, place.head, sequence.row_q + place.first_row,
                                  sequence.seqlen_q - place.first_row, p.head_dim);
    int const channel = Lanes::channel();
    auto const group = [](int i) { return Lanes::slot() + i * kSlots; };
    auto const row = [&](int i, int j) { return group(i) / 8 * kQScaleRows + j * 8 + group(i) % 8; };
    Channels x[kQGroups * 4];
    rows.load(x, channel, [&](int j) { return row(j / 4, j % 4); });

    if (p.lse_shift) {
      load_k_mean(p, shared, place.batch, place.head / (p.num_heads_q / p.num_heads_kv));
      float* const lse_shift =
          p.lse_shift + place.first_row +
          (p.q_tiles.packed ? place.head * p.total_q + sequence.row_q
                            : (int64_t{place.batch} * p.num_heads_q + place.head) * sequence.seqlen_q);
      SAGE_UNROLL for (int j = 0; j < kQGroups * 4; ++j) {
        float y[8], dot = 0.f;
        quantize::to_float(y, x[j], p.dtype);
        SAGE_UNROLL for (int c = 0; c < 8; ++c)
          dot = fmaf(y[c], shared.channel[channel + c], dot);
        dot = Lanes::sum(dot);
        if (channel == 0 && rows.has(row(j / 4, j % 4))) lse_shift[row(j / 4, j % 4)] = p.softmax_scale * dot;
      }
    }

    float amax[kQGroups] = {};
    SAGE_UNROLL for (int j = 0; j < kQGroups * 4; ++j) {
      float y[8];
      quantize::to_float(y, x[j], p.dtype);
      SAGE_UNROLL for (int c = 0; c < 8; ++c)
        amax[j / 4] = arch::max_nan(amax[j / 4], fabsf(y[c]));
    }
    SAGE_UNROLL for (int i = 0; i < kQGroups; ++i)
      amax[i] = Lanes::max_nan(amax[i]);
    if (p.granularity != QkGranularity::kThread) {
      int const sharing = p.granularity == QkGranularity::kWarp ? kQScaleRows / 4 : kQScalesPerTile;
      SAGE_UNROLL for (int i = 0; i < kQGroups; ++i) {
        if (channel == 0) shared.amax[group(i)] = amax[i];
      }
      arch::sync_block();  // the maxima of all groups are visible
      SAGE_UNROLL for (int i = 0; i < kQGroups; ++i)
        amax[i] = max_of(shared, group(i) / sharing * sharing, sharing);
    }

    int8_t* const out = p.q_out + place.tile * (kQTileRows * kHeadDim);
    bool const upper = channel & 16;  // of 32 channels, which this lane shares with the lane 16 channels away
    SAGE_UNROLL for (int i = 0; i < kQGroups; ++i) {
      Scale const scale = Scale::linear(amax[i], kLimit);
      // The sign of softmax_scale goes to the rounded values, so that scales are never negative.
      float const inverse = p.softmax_scale < 0.f ? -scale.inverse : scale.inverse;
      if (channel == 0) {
        p.q_scale[place.tile * kQScalesPerTile + group(i)] = scale.scale * (fabsf(p.softmax_scale) * kLog2e);
      }
      SAGE_UNROLL for (int j = 0; j < 4; j += 2) {
        // Rows r and r + 8: a lane's 16 bytes are 4 channels and the 4 that are 16 further on, of both.
        uint32_t low[2], high[2];
        round_row(low[0], high[0], x[i * 4 + j], p.dtype, inverse);
        round_row(low[1], high[1], x[i * 4 + j + 1], p.dtype, inverse);
        uint32_t const other0 = arch::shuffle_xor(upper ? low[0] : high[0], 2);
        uint32_t const other1 = arch::shuffle_xor(upper ? low[1] : high[1], 2);
        int const d = upper ? channel - 16 + 4 : channel;
        *reinterpret_cast<Channels*>(out + q_int8_offset<kHeadDim>(row(i, j), d)) =
            upper ? Channels{{other0, other1, high[0], high[1]}} : Channels{{low[0], low[1], other0, other1}};
      }
    }
  }

  // Slot s has the keys 8 i + 2 t and 8 i + 2 t + 1 with t = s % 4 and i = s / 4 and s / 4 + 4.
  SAGE_DEVICE static void quantize_k(Params const& p, SharedStorage& shared, Place const& place) {
    Sequence const sequence = p.sequences[place.batch];
    if (place.first_row >= sequence.seqlen_k) return;
    quantize::HeadRows const rows(p.k, place.batch, place.head, sequence.row_k + place.first_row,
                                  sequence.seqlen_k - place.first_row, p.head_dim);
    int const channel = Lanes::channel(), group = Lanes::slot() % 4;
    auto const key = [&](int j) { return (Lanes::slot() / 4 + j / 2 * 4) * 8 + group * 2 + j % 2; };
    Channels x[4];
    rows.load(x, channel, key);
    load_k_mean(p, shared, place.batch, place.head);

    float y[4][8], amax = 0.f;
    SAGE_UNROLL for (int j = 0; j < 4; ++j) {
      quantize::to_float(y[j], x[j], p.dtype);
      SAGE_UNROLL for (int c = 0; c < 8; ++c) {
        y[j][c] = rows.has(key(j)) ? y[j][c] - shared.channel[channel + c] : 0.f;
        amax = arch::max_nan(amax, fabsf(y[j][c]));
      }
    }
    int const sharing = p.granularity == QkGranularity::kThread ? kSlots / kKScalesPerTile : kSlots;
    amax = Lanes::max_nan(amax);
    if (channel == 0) shared.amax[group * 4 + Lanes::slot() / 4] = amax;
    arch::sync_block();  // the maxima of all slots are visible
    Scale const scale = Scale::linear(max_of(shared, group * 4 / sharing * sharing, sharing), kLimit);
    if (channel == 0 && Lanes::slot() < kKScalesPerTile) {
      p.k_scale[place.tile * kKScalesPerTile + group] = scale.scale;
    }

    int8_t* const out = p.k_out + place.tile * (kKTileRows * kHeadDim);
    bool const odd = channel & 8;  // of 16 channels, which this lane shares with its neighbour
    SAGE_UNROLL for (int j = 0; j < 4; j += 2) {
      // Two keys: the even lane stores the first, the odd lane the second.
      uint32_t first[2], second[2];
      round_channels(first, y[j], scale.inverse);
      round_channels(second, y[j + 1], scale.inverse);
      uint32_t const other0 = arch::shuffle_xor(odd ? first[0] : second[0], 1);
      uint32_t const other1 = arch::shuffle_xor(odd ? first[1] : second[1], 1);
      *reinterpret_cast<Channels*>(out + k_int8_offset(key(j) + odd, channel & ~15)) =
          odd ? Channels{{other0, other1, second[0], second[1]}} : Channels{{first[0], first[1], other0, other1}};
    }
  }

  SAGE_DEVICE static void quantize_v(Params const& p, SharedStorage& shared, Place const& place) {
    Sequence const sequence = p.sequences[place.batch];
    if (p.v_format != VFormat::kCopy) {
      // Before the tile is known to have keys: the scales exist for sequences without any, too.
      load_v_scale(p, shared, place);
    }
    if (place.first_row >= sequence.seqlen_k) return;
    quantize::HeadRows const rows(p.v, place.batch, place.head, sequence.row_k + place.first_row,
                                  sequence.seqlen_k - place.first_row, p.head_dim);
    if (p.v_format == VFormat::kInt8) {
      store_v_int8(p, shared, place, rows);
    } else {
      store_v16(p, shared, place, rows);
    }
  }

  // Slot s has the keys s, s + kSlots, ...
  SAGE_DEVICE static void store_v16(Params const& p, SharedStorage const& shared, Place const& place,
                                    quantize::HeadRows const& rows) {
    int const channel = Lanes::channel();
    auto const key = [](int j) { return Lanes::slot() + j * kSlots; };
    Channels x[4];
    rows.load(x, channel, key);
    uint16_t* const out = static_cast<uint16_t*>(p.v_out) + place.tile * (kKTileRows * kHeadDim);
    SAGE_UNROLL for (int j = 0; j < 4; ++j) {
      if (p.v_format == VFormat::kFloat16) {
        float y[8];
        quantize::to_float(y, x[j], p.dtype);
        SAGE_UNROLL for (int c = 0; c < 8; c += 2) {
          x[j].pair[c / 2] =
              arch::pack_f16(y[c] * shared.channel[channel + c], y[c + 1] * shared.channel[channel + c + 1]);
        }
      }
      *reinterpret_cast<Channels*>(out + key(j) * kHeadDim + channel) = x[j];
    }
  }

  // Slot s has the keys of the positions 4 s .. 4 s + 3: a word of each of its channels. The tile is put together in
  // shared memory.
  SAGE_DEVICE static void store_v_int8(Params const& p, SharedStorage& shared, Place const& place,
                                       quantize::HeadRows const& rows) {
    int const channel = Lanes::channel();
    auto const key = [](int j) { return Lanes::slot() / 4 * 16 + j / 2 * 8 + Lanes::slot() % 4 * 2 + j % 2; };
    Channels x[4];
    rows.load(x, channel, key);
    float y[4][8];
    SAGE_UNROLL for (int j = 0; j < 4; ++j)
      quantize::to_float(y[j], x[j], p.dtype);
    SAGE_UNROLL for (int c = 0; c < 8; ++c) {
      int const offset = v_int8_offset(key(0), channel + c);
      *reinterpret_cast<uint32_t*>(shared.v + v_chunk(offset / 16) * 16 + offset % 16) =
          quantize::quantize_int8x4(y[0][c], y[1][c], y[2][c], y[3][c], shared.channel[channel + c]);
    }
    arch::sync_block();  // the tile is complete
    auto* const out = reinterpret_cast<Channels*>(static_cast<char*>(p.v_out) + place.tile * (kKTileRows * kHeadDim));
    SAGE_UNROLL for (int i = 0; i < kKTileRows * kHeadDim / 16; i += kThreads) {
      int const chunk = i + arch::thread_index();
      out[chunk] = reinterpret_cast<Channels const*>(shared.v)[v_chunk(chunk)];
    }
  }

  // Where a chunk of 16 bytes lies in shared memory: the same channel of 8 lanes falls in different banks.
  SAGE_DEVICE static int v_chunk(int chunk) { return chunk ^ (chunk / 8 % 8); }

  // shared.channel = mean of K over the sequence; zeros if K is not smoothed or there is none. Ends with a barrier.
  SAGE_DEVICE static void load_k_mean(Params const& p, SharedStorage& shared, int batch, int head_kv) {
    int const channel = arch::thread_index();
    if (channel < kHeadDim) {
      float mean = 0.f;
      if (p.smooth_k && p.k_seqlens[batch] > 0.f) {
        float sum = 0.f;
        for_each_chunk(p, p.k_sum, batch, head_kv, [&](float x) { sum += x; });
        mean = sum / p.k_seqlens[batch];
      }
      shared.channel[channel] = mean;
    }
    arch::sync_block();  // the means of all channels are visible
  }

  // shared.channel = inverse scales of V; the block of the sequence's first tile stores the scales. Ends with a
  // barrier.
  SAGE_DEVICE static void load_v_scale(Params const& p, SharedStorage& shared, Place const& place) {
    int const channel = arch::thread_index();
    if (channel < kHeadDim) {
      float amax = 0.f;
      for_each_chunk(p, p.v_amax, place.batch, place.head, [&](float x) { amax = arch::max_nan(amax, x); });
      Scale const scale = p.v_format == VFormat::kInt8 ? Scale::linear(amax, p.v_max) : Scale::power_of_two(amax);
      shared.channel[channel] = scale.inverse;
      if (place.first_row == 0) {
        p.v_scale[(int64_t{place.batch} * p.num_heads_kv + place.head) * kHeadDim + channel] = scale.scale;
      }
    }
    arch::sync_block();  // the inverse scales of all channels are visible
  }

  // Calls take(x) with the values of this thread's channel, in the chunks' order.
  template <class Take>
  SAGE_DEVICE static void for_each_chunk(Params const& p, float const* stats, int batch, int head, Take const& take) {
    float const* const x =
        stats + (int64_t{batch} * p.num_heads_kv + head) * p.stats_chunks * kHeadDim + arch::thread_index();
    SAGE_UNROLL for (int i = 0; i < kMaxStatsChunks; ++i) {
      if (i < p.stats_chunks) take(x[i * kHeadDim]);
    }
  }

  SAGE_DEVICE static float max_of(SharedStorage const& shared, int first, int count) {
    float x = shared.amax[first];
    for (int i = 1; i < count; ++i) x = arch::max_nan(x, shared.amax[first + i]);
    return x;
  }

  // Channels 0 .. 3 and 4 .. 7.
  SAGE_DEVICE static void round_channels(uint32_t (&codes)[2], float const (&x)[8], float inverse) {
    codes[0] = quantize::quantize_int8x4(x[0], x[1], x[2], x[3], inverse);
    codes[1] = quantize::quantize_int8x4(x[4], x[5], x[6], x[7], inverse);
  }
  SAGE_DEVICE static void round_row(uint32_t& low, uint32_t& high, Channels const& x, DType dtype, float inverse) {
    float y[8];
    quantize::to_float(y, x, dtype);
    uint32_t codes[2];
    round_channels(codes, y, inverse);
    low = codes[0];
    high = codes[1];
  }
};

}  // namespace sage
