// O += P V with e4m3 P and V on mma.sync, as tile/pv_accumulator.h describes accumulators.
//
// The largest P is params.p_max; the scale of V is in the epilogue. What the accumulators cannot hold for long is
// folded into float32 after every params.fold_every tiles of keys.
#pragma once
#include <cstdint>
#include <cute/arch/mma_sm89.hpp>

#include "arch/convert.h"
#include "arch/math.h"
#include "arch/tensor_ops.h"
#include "common/quant_format.h"
#include "tile/pv_accumulator.h"

namespace sage::tile {

// P of one tile of keys as e4m3 A fragments: registers [key tile of 32][4].
template <int kMTiles>
struct ProbabilitiesFp8 {
  uint32_t a[kMTiles][kKTileRows / 32][4];

  // Row r (of g, g + 8), keys 8 n + 2 t + {0, 1} and 8 (n + 1) + 2 t + {0, 1}: v8_position puts them side by side.
  SAGE_DEVICE void set(int mt, int n, int r, float p0, float p1, float p2, float p3) {
    a[mt][n / 4][n % 4 / 2 * 2 + r] = arch::round_to_e4m3x4(p0, p1, p2, p3, 1.f);
  }
};

// B fragments of 64 keys by 8 channels of 8-bit V. `v` points to this lane's place in the panels of v8_offset.
SAGE_DEVICE void load_v8(uint32_t (&b)[4], char const* v, int n) {
  arch::ldmatrix<cute::SM75_U32x4_LDSM_N>(b, v + n / 8 * 4096 + n % 8 * 128);
}

// Float32 accumulators, which are O. The tensor cores of sm_89 truncate them to 13 bits below the leading one of the
// largest addend, at every addition (kTruncates; they need folding). The rows' sums are accumulated by the same
// instructions, as a column of ones in V, so that what truncation takes from O it takes from its divisor too: that is
// what the column's tensor time buys.
template <int kHeadDim, int kMTiles, class Op, bool kTruncates>
struct PvAccumFp8F32 {
  static constexpr int kElementBytes = 1;
  static constexpr Maximum kMaximum = Maximum::kRow;
  static constexpr Divisor kDivisor = Divisor::kAccumulated;
  static constexpr bool kFolds = kTruncates;
  using Probabilities = ProbabilitiesFp8<kMTiles>;
  PvAccumF32<kHeadDim, kMTiles, false> o;
  float sum[kMTiles][4] = {};  // m16n8 fragments, all of whose columns are the same

  SAGE_DEVICE void scale(float const (&factor)[kMTiles][2]) {
    o.scale(factor);
    SAGE_UNROLL for (int i = 0; i < kMTiles * 4; ++i)
      sum[i / 4][i % 4] *= factor[i / 4][i % 4 / 2];
  }
  SAGE_DEVICE void add(Probabilities const& p, char const* v, float const (&)[kMTiles][2]) {
    uint32_t const ones[4] = {0x38383838u, 0x38383838u, 0x38383838u, 0x38383838u};
    SAGE_UNROLL for (int mt = 0; mt < kMTiles; ++mt)
      mma_twice<Op>(sum[mt], p.a[mt][0], p.a[mt][1], ones);
    for_channel_tiles<kHeadDim / 8, 2>([&](int n) {
      uint32_t b[4];
      load_v8(b, v, n);
      SAGE_UNROLL for (int mt = 0; mt < kMTiles; ++mt)
        mma_twice<Op>(o.acc[mt][n], p.a[mt][0], p.a[mt][1], b);
    });
  }
  SAGE_DEVICE float value(int mt, int n, int x) const { return o.value(mt, n, x); }
  SAGE_DEVICE float row_sum(int mt, int r) const { return sum[mt][2 * r]; }
};

// fp16 accumulators for one tile of keys, which fp16 registers add up 2^-7 times. Nothing overflows if
// 64 * p_max * v_max <= 65504 and fold_every * 64 * p_max * v_max * 2^-7 <= 65504, as csrc/api checks.
template <int kHeadDim, int kMTiles>
struct PvAccumFp8F16 {
  static constexpr int kElementBytes = 1;
  static constexpr Maximum kMaximum = Maximum::kRow;
  static constexpr Divisor kDivisor = Divisor::kProbabilities;
  static constexpr bool kFolds = true;
  using Probabilities = ProbabilitiesFp8<kMTiles>;
  PvAccumF16<kHeadDim, kMTiles> o;

  SAGE_DEVICE void scale(float const (&factor)[kMTiles][2]) { o.scale(factor); }
  SAGE_DEVICE void add(Probabilities const& p, char const* v, float const (&)[kMTiles][2]) {
    uint32_t const step = arch::pack_f16(0x1p-7f, 0x1p-7f);
    for_channel_tiles<kHeadDim / 8, 8>([&](int n) {
      uint32_t b[4];
      load_v8(b, v, n);
      SAGE_UNROLL for (int mt = 0; mt < kMTiles; ++mt) {
        uint32_t tile[2] = {};
        mma_twice<cute::SM89_16x8x32_F16E4M3E4M3F16_TN>(tile, p.a[mt][0], p.a[mt][1], b);
        SAGE_UNROLL for (int r = 0; r < 2; ++r)
          o.acc[mt][n][r] = arch::fma_f16x2(tile[r], step, o.acc[mt][n][r]);
      }
    });
  }
  SAGE_DEVICE float value(int mt, int n, int x) const { return o.value(mt, n, x) * 0x1p7f; }
};

}  // namespace sage::tile
