// What the quantizers share: reading rows of the caller's 16-bit tensors, finding the tile that a block works on, and
// scales. All threads of a block read together: `kHeadDim / 8` neighbouring lanes read one row, 8 channels each, and
// the threads form `kSlots` such groups, called slots.
#pragma once
#include <cfloat>
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

// Eight 16-bit channels.
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

  SAGE_DEVICE static int slot() { return arch::thread_index() / kPerRow; }
  SAGE_DEVICE static int channel() { return arch::thread_index() % kPerRow * 8; }

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
};

// Rows of one head of a tensor, from `first_row` on. Nothing is read beyond `num_rows` and `head_dim`.
class HeadRows {
 public:
  SAGE_DEVICE HeadRows(TensorView const& x, int batch, int head, int64_t first_row, int64_t num_rows, int head_dim)
      : data_(static_cast<uint16_t const*>(x.data)),
        first_(batch * x.stride_batch + head * x.stride_head + first_row * x.stride_seq),
        stride_(x.stride_seq),
        num_rows_(num_rows),
        head_dim_(head_dim),
        aligned_((reinterpret_cast<uintptr_t>(data_) / 2 % 8 + first_) % 8 == 0 && stride_ % 8 == 0) {}

  SAGE_DEVICE bool has(int64_t row) const { return row < num_rows_; }

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
  int64_t first_, stride_, num_rows_;  // elements
  int head_dim_;
  bool aligned_;  // rows start at multiples of 16 bytes
};

// One tile of an operand. Blocks count through [head][tile]; a sequence without rows has one block, too.
struct Place {
  int head, batch;
  int64_t first_row;  // of the tile, in its sequence
  int64_t tile;       // in the operand's buffers

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
      x.tile = sequence * tiles.per_sequence + tile_of_sequence;
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

// As arch::round_to_int8x4, but zeros for the inverse 0, whatever the values are.
SAGE_DEVICE uint32_t quantize_int8x4(float a, float b, float c, float d, float inverse) {
  uint32_t const codes = arch::round_to_int8x4(a, b, c, d, inverse);
  return inverse == 0.f ? 0 : codes;
}

}  // namespace sage::quantize
