// Hides the keys that a row does not see in one tile of scores, and adds an additive mask.
#pragma once
#include <cfloat>
#include <cstdint>

#include "arch/math.h"
#include "arch/simt.h"
#include "common/mask.h"
#include "common/numerics.h"
#include "sage/attention.h"

namespace sage::tile {

SAGE_DEVICE int element_bytes(DType dtype) { return dtype == DType::kBool ? 1 : dtype == DType::kFloat32 ? 4 : 2; }

// What an element of a mask adds to a base-2 score. A finite value stays finite, and so does +inf.
SAGE_DEVICE float read_mask(char const* element, DType dtype) {
  if (dtype == DType::kBool) return *element ? 0.f : -INFINITY;
  float value;
  if (dtype == DType::kFloat32) {
    value = *reinterpret_cast<float const*>(element);
  } else {
    uint32_t const bits = *reinterpret_cast<uint16_t const*>(element);
    value = dtype == DType::kFloat16 ? arch::f16_to_float(bits) : arch::bf16_to_float(bits);
  }
  if (value == -INFINITY) return value;
  value *= kLog2e;
  return value < -FLT_MAX ? -FLT_MAX : value > FLT_MAX ? FLT_MAX : value;  // NaN stays
}

// Which keys of a tile a lane's scores are of: accumulator fragments of Q K^T with the keys as columns, in their order,
// or as NVFP4 K has them (common/nvfp4_format.h).
struct InOrder {
  static constexpr int kKeysPerLane = 2;
  SAGE_DEVICE static constexpr int key(int n, int e) { return n * 8 + e; }
};
struct InRunsOf8 {
  static constexpr int kKeysPerLane = 8;
  SAGE_DEVICE static constexpr int key(int n, int e) { return n / 4 * 32 + n % 4 * 2 + e; }
};

// The scores of one warp for one tile of keys, as accumulator fragments: bits of floats, score = (s - bias) * scale.
// Turns them into base-2 scores, -inf where the key is not seen. `row` is the warp's first row, `col` the first key.
// kPinned: addresses of the mask are computed where they are used, for a caller without registers for several.
template <bool kPinned, class Columns = InOrder, int kMTiles, int kNTiles>
SAGE_DEVICE void mask_scores(uint32_t (&s)[kMTiles][kNTiles][4], float scale, float bias, Mask const& visible,
                             MaskView const& mask, int batch, int head, int64_t row, int64_t col) {
  // Pinned, so that nothing of this rare path is computed ahead of it and kept in registers.
  uint32_t const lane = arch::pinned(arch::lane_index());
  col += lane % 4 * Columns::kKeysPerLane;
  SAGE_UNROLL for (int i = 0; i < 2 * kMTiles; ++i) {
    int const mt = i / 2, r = i % 2;
    int64_t const row_i = row + lane / 4 + mt * 16 + r * 8;
    // Relative to col, and held to the tile so that they fit 32 bits.
    auto const held = [&](int64_t end) {
      int64_t const d = end - col;
      return static_cast<int>(d < -8 ? -8 : d > kNTiles * 8 ? kNTiles * 8 : d);
    };
    int const begin = held(visible.col_begin(row_i)), end = held(visible.col_end(row_i));
    SAGE_UNROLL for (int n = 0; n < kNTiles; ++n) {
      SAGE_UNROLL for (int e = 0; e < 2; ++e) {
        uint32_t& bits = s[mt][n][2 * r + e];
        bool const seen = Columns::key(n, e) >= begin && Columns::key(n, e) < end;
        bits = arch::as_uint(seen ? (arch::as_float(bits) - bias) * scale : -INFINITY);
      }
    }
    if (!mask.data || row_i >= visible.seqlen_q) continue;
    int64_t const bytes = arch::pinned(element_bytes(mask.dtype));
    char const* element =
        static_cast<char const*>(mask.data) +
        (batch * mask.stride_batch + head * mask.stride_head + row_i * mask.stride_q + col * mask.stride_k) * bytes;
    int64_t const next = mask.stride_k * bytes;
    SAGE_UNROLL for (int n = 0; n < kNTiles; ++n) {
      SAGE_UNROLL for (int e = 0; e < 2; ++e) {
        uint32_t& bits = s[mt][n][2 * r + e];
        float const score = arch::as_float(bits);
        float added = 0.f;
        if (score != -INFINITY) added = read_mask(element, mask.dtype);  // else it may not exist
        bits = arch::as_uint(score + added);
        element += (Columns::key(n + e, 1 - e) - Columns::key(n, e)) * next;
        if (kPinned) element = arch::pinned(element);
      }
    }
  }
}

}  // namespace sage::tile
