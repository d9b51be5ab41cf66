// What the quantizers share: reading rows of the caller's 16-bit tensors, rotating them, finding the tile that a block
// works on, scales, and what KvStats has found. All threads of a block read together: `kHeadDim / 8` neighbouring lanes
// read one row, 8 channels each, and the threads form `kSlots` such groups, called slots.
#pragma once
#include <cfloat>
#include <climits>
#include <cmath>
#include <cstdint>

#include "arch/convert.h"
#include "arch/math.h"
#include "arch/simt.h"
#include "common/macros.h"
#include "common/quant_format.h"
#include "quantize/params.h"

namespace sage::quantize {

constexpr int kSlots = 16;

// Eight 16-bit channels, or as many bytes of an output.
struct alignas(16) Channels {
  uint32_t pair[4];
};

SAGE_DEVICE void to_float(float (&y)[8], Channels const& x, DType dtype) {
  float pair[2];
  if (dtype == DType::kBFloat16) {
    SAGE_UNROLL for (int i = 0; i < 8; i += 2) {
      arch::bf16x2_to_float(pair, x.pair[i / 2]);
      y[i] = pair[0];
      y[i + 1] = pair[1];
    }
  } else {
    SAGE_UNROLL for (int i = 0; i < 8; i += 2) {
      arch::f16x2_to_float(pair, x.pair[i / 2]);
      y[i] = pair[0];
      y[i + 1] = pair[1];
    }
  }
}

// Threads that read rows of `kHeadDim` channels.
template <int kHeadDim>
struct Lanes {
  static constexpr int kPerRow = kHeadDim / 8, kThreads = kSlots * kPerRow;

  // Unsigned division: of a negative number it would be more than a shift.
  SAGE_DEVICE static int slot() { return static_cast<unsigned>(arch::thread_index()) / kPerRow; }
  SAGE_DEVICE static int channel() { return static_cast<unsigned>(arch::thread_index()) % kPerRow * 8; }

  // Over the lanes of a row.
  SAGE_DEVICE static float sum(float x) {
    SAGE_UNROLL for (int i = 1; i < kPerRow; i *= 2)
      x += arch::shuffle_xor(x, i);
    return x;
  }
  SAGE_DEVICE static float max_nan(float x) {
    SAGE_UNROLL for (int i = 1; i < kPerRow; i *= 2)
      x = arch::max_nan(x, arch::shuffle_xor(x, i));
    return x;
  }

  // What `rotate` multiplies a channel by; visible after a barrier.
  SAGE_DEVICE static void load_signs(float (&signs)[kHeadDim]) {
    int const c = arch::thread_index();
    if (c < kHeadDim) signs[c] = kHadamardFactor<kHeadDim> * hadamard_sign(c);
  }

  // Rotates a row (common/quant_format.h). The channels change places: a step exchanges half of the values with another
  // lane, and what comes out of it stays where it is.
  SAGE_DEVICE static void rotate(float (&x)[8], float const (&signs)[kHeadDim]) {
    SAGE_UNROLL for (int c = 0; c < 8; ++c)
      x[c] *= signs[channel() + c];
    SAGE_UNROLL for (int step = 1; step < 8; step *= 2) {
      SAGE_UNROLL for (int c = 0; c < 8; ++c) {
        if (c & step) continue;
        float const a = x[c], b = x[c + step];
        x[c] = a + b;
        x[c + step] = a - b;
      }
    }
    SAGE_UNROLL for (int step = 1; step < kPerRow; step *= 2) {
      bool const upper = arch::lane_index() & step;
      SAGE_UNROLL for (int c = 0; c < 4; ++c) {
        float const mine = upper ? x[c + 4] : x[c], other = arch::shuffle_xor(upper ? x[c] : x[c + 4], step);
        x[c] = mine + other;
        x[c + 4] = mine - other;
      }
    }
  }
};

// The largest magnitude of a row's channels, and `amax`.
SAGE_DEVICE float larger_amax(float amax, float const (&x)[8]) {
  SAGE_UNROLL for (int c = 0; c < 8; ++c)
    amax = arch::max_nan(amax, fabsf(x[c]));
  return amax;
}

// The largest of `count` values.
SAGE_DEVICE float max_of(float const* x, int count) {
  float y = x[0];
  for (int i = 1; i < count; ++i) y = arch::max_nan(y, x[i]);
  return y;
}

// Rows of one head of a tensor, from `first_row` on. Nothing is read beyond `num_rows` and `head_dim`. A kernel asks
// for fewer than 2^31 of the rows.
class HeadRows {
 public:
  SAGE_DEVICE HeadRows(TensorView const& x, int batch, int head, int64_t first_row, int64_t num_rows, int head_dim)
      : data_(static_cast<uint16_t const*>(x.data)),
        first_(batch * x.stride_batch + head * x.stride_head + first_row * x.stride_seq),
        stride_(x.stride_seq),
        num_rows_(static_cast<int>(num_rows < INT_MAX ? num_rows : INT_MAX)),
        head_dim_(head_dim),
        aligned_((reinterpret_cast<uintptr_t>(data_) / 2 % 8 + first_) % 8 == 0 && stride_ % 8 == 0) {}

  SAGE_DEVICE bool has(int row) const { return row < num_rows_; }

  // x[j] = channels channel .. channel + 7 of row(j), zero where they do not exist.
  template <int kRows, class Row>
  SAGE_DEVICE void load(Channels (&x)[kRows], int channel, Row const& row) const {
    if (aligned_ && head_dim_ % 8 == 0) {
      SAGE_UNROLL for (int j = 0; j < kRows; ++j) {
        x[j] = {};
        if (has(row(j)) && channel < head_dim_) {
          x[j] = *reinterpret_cast<Channels const*>(data_ + (first_ + row(j) * stride_ + channel));
        }
      }
    } else {
      SAGE_UNROLL for (int j = 0; j < kRows; ++j) {
        x[j] = {};
        SAGE_UNROLL for (int i = 0; i < 8; ++i) {
          if (has(row(j)) && channel + i < head_dim_) {
            x[j].pair[i / 2] |= uint32_t{data_[first_ + row(j) * stride_ + channel + i]} << i % 2 * 16;
          }
        }
      }
    }
  }

 private:
  uint16_t const* data_;
  int64_t first_, stride_;  // elements
  int num_rows_, head_dim_;
  bool aligned_;  // rows start at multiples of 16 bytes
};

// One tile of an operand. Blocks count through [head][tile]; a sequence without rows has one block, too.
struct Place {
  int head, batch;
  int64_t first_row;  // of the tile, in its sequence
  uint32_t tile;      // in the operand's buffers

  // Where the tile lies in a buffer that has `per_tile` elements for each.
  template <class T>
  SAGE_DEVICE T* in(T* buffer, int per_tile) const {
    return buffer + int64_t{tile} * per_tile;
  }

  SAGE_HD static int64_t num_blocks(TileSpace const& tiles, int32_t batch, int32_t num_heads) {
    return num_heads * (tiles.packed ? tiles.per_head : batch * blocks_per_sequence(tiles));
  }

  template <int kTileRows>
  SAGE_DEVICE static Place find(TileSpace const& tiles, int32_t batch, int32_t const* cu_seqlens, uint32_t block) {
    Place x;
    int64_t tile_of_sequence;
    if (tiles.packed) {
      uint32_t const per_head = static_cast<uint32_t>(tiles.per_head), tile = block % per_head;
      x.head = static_cast<int>(block / per_head);
      int first = 0, last = batch - 1;  // the last sequence whose first tile is not beyond this one
      while (first < last) {
        int const middle = (first + last + 1) / 2;
        if (first_tile<kTileRows>(tiles, middle, cu_seqlens[middle]) <= tile) {
          first = middle;
        } else {
          last = middle - 1;
        }
      }
      x.batch = first;
      tile_of_sequence = tile - first_tile<kTileRows>(tiles, first, cu_seqlens[first]);
      x.tile = block;
    } else {
      uint32_t const per_sequence = static_cast<uint32_t>(blocks_per_sequence(tiles)), sequence = block / per_sequence;
      x.head = static_cast<int>(sequence / batch);
      x.batch = static_cast<int>(sequence % batch);
      tile_of_sequence = block % per_sequence;
      x.tile = static_cast<uint32_t>(sequence * tiles.per_sequence + tile_of_sequence);
    }
    x.first_row = tile_of_sequence * kTileRows;
    return x;
  }

 private:
  SAGE_HD static int64_t blocks_per_sequence(TileSpace const& tiles) {
    return tiles.per_sequence > 0 ? tiles.per_sequence : 1;
  }
};

// From a group's largest magnitude. Where that is not finite, the scale is NaN and the inverse 0. An all-zero group is
// scaled as if its largest magnitude were kAmaxFloor: scale and inverse stay normal numbers.
struct Scale {
  static constexpr float kAmaxFloor = 1e-34f;
  float scale, inverse;

  // `limit` is the quantized value that the largest magnitude maps to.
  SAGE_DEVICE static Scale linear(float amax, float limit) {
    if (!(amax <= FLT_MAX)) return {NAN, 0.f};
    amax = fmaxf(amax, kAmaxFloor);
    return {amax / limit, limit / amax};
  }

  // The power of two above amax; 2^127 where that is no float32.
  SAGE_DEVICE static Scale power_of_two(float amax) {
    if (!(amax <= FLT_MAX)) return {NAN, 0.f};
    uint32_t const exponent = arch::as_uint(fmaxf(amax, kAmaxFloor)) >> 23;
    float const scale = arch::as_float((exponent < 254 ? exponent + 1 : 254) << 23);
    return {scale, 1.f / scale};
  }
};

// The code of the largest magnitude of a group of Q or K.
SAGE_DEVICE float qk_limit(QkFormat format) { return format == QkFormat::kInt8 ? 127.f : 7.f; }

// As the functions of arch, but zeros for the inverse 0, whatever the values are.
SAGE_DEVICE uint32_t quantize_int8x4(float a, float b, float c, float d, float inverse) {
  uint32_t const codes = arch::round_to_int8x4(a, b, c, d, inverse);
  return inverse == 0.f ? 0 : codes;
}
SAGE_DEVICE void quantize_int8x8(uint32_t (&codes)[2], float const (&x)[8], float inverse) {
  codes[0] = quantize_int8x4(x[0], x[1], x[2], x[3], inverse);
  codes[1] = quantize_int8x4(x[4], x[5], x[6], x[7], inverse);
}
SAGE_DEVICE uint32_t quantize_e4m3x4(float a, float b, float c, float d, float inverse) {
  uint32_t const codes = arch::round_to_e4m3x4(a, b, c, d, inverse);
  return inverse == 0.f ? 0 : codes;
}
SAGE_DEVICE uint32_t quantize_int4x8(float const (&x)[8], float inverse) {
  uint32_t const codes = arch::round_to_int4x8(x, inverse);
  return inverse == 0.f ? 0 : codes;
}
SAGE_DEVICE uint32_t quantize_rest_int4x8(float const (&x)[8], float inverse) {
  uint32_t const codes = arch::round_rest_to_int4x8(x, inverse);
  return inverse == 0.f ? 0 : codes;
}

// Between two lanes that are `distance` apart, a power of two: the lower one gets the first halves of both its own
// words and the other's, the upper one the second halves.
SAGE_DEVICE Channels exchange_halves(uint32_t const (&x)[4], int distance) {
  bool const upper = arch::lane_index() & distance;
  uint32_t const other0 = arch::shuffle_xor(upper ? x[0] : x[2], distance);
  uint32_t const other1 = arch::shuffle_xor(upper ? x[1] : x[3], distance);
  return upper ? Channels{{other0, other1, x[2], x[3]}} : Channels{{x[0], x[1], other0, other1}};
}

// Calls take(x) with what KvStats has found for this thread's channel, in the chunks' order.
template <int kHeadDim, class Take>
SAGE_DEVICE void for_each_chunk(QuantizeParams const& p, float const* stats, int batch, int head_kv, Take const& take) {
  float const* const x =
      stats + (int64_t{batch} * p.num_heads_kv + head_kv) * p.stats_chunks * kHeadDim + arch::thread_index();
  SAGE_UNROLL for (int i = 0; i < kMaxStatsChunks; ++i) {
    if (i < p.stats_chunks) take(x[i * kHeadDim]);
  }
}

// mean = mean of K over the sequence; zeros if K is not smoothed or there is none. Ends with a barrier.
template <int kHeadDim>
SAGE_DEVICE void load_k_mean(QuantizeParams const& p, float (&mean)[kHeadDim], int batch, int head_kv) {
  int const channel = arch::thread_index();
  if (channel < kHeadDim) {
    float sum = 0.f;
    bool const smooth = p.smooth_k && p.seqlens_k[batch] > 0.f;
    if (smooth) for_each_chunk<kHeadDim>(p, p.k_sum, batch, head_kv, [&](float x) { sum += x; });
    mean[channel] = smooth ? sum / p.seqlens_k[batch] : 0.f;
  }
  arch::sync_block();  // the means of all channels are visible
}

}  // namespace sage::quantize
