// O += P V for the 16-row tiles of one warp, in every accumulation mode of the mma.sync families.
//
// P is in the registers in which Q K^T left the scores; V is in shared memory. An accumulator has
//   kElementBytes                 of V
//   kMaximum                      which maximum P = 2^(score - maximum) is relative to
//   kSumLimit                     with Maximum::kStale: the largest sum of a lane's probabilities of a row and tile
//                                 that P's format takes
//   kDivisor                      what O is divided by
//   kFolds                        O does not stay accurate for ever: after params.fold_every tiles it is taken out
//   Probabilities p; p.set(...)   packs four scores of a lane
//   scale(factor)                 when the rows' maximum moves
//   add(p, v, factor)             one tile of keys; the tile's factor is used with Maximum::kTile
//   value(mt, n, x)               element x of the m16n8 accumulator fragment of channel tile n
//   row_sum(mt, r)                with Divisor::kAccumulated
#pragma once
#include <cstdint>
#include <cute/arch/copy_sm75.hpp>
#include <cute/arch/mma_sm80.hpp>

#include "arch/convert.h"
#include "arch/math.h"
#include "arch/simt.h"
#include "arch/tensor_ops.h"
#include "common/quant_format.h"

namespace sage::tile {

enum class Maximum {
  kStale,  // that of the row at some earlier tile
  kRow,    // that of the row so far
  kTile,   // that of the row in this tile of keys
};

// A row's sum of
enum class Divisor {
  kProbabilities,  // P before it is rounded
  kRounded,        // rounded P: Probabilities has `sum` of a lane's share in a tile
  kAccumulated,    // rounded P, in the accumulator
};

// P of one tile of keys as 16-bit A fragments: registers [key tile of 16][4].
template <int kMTiles, bool kBf16>
struct Probabilities16 {
  static constexpr int kMmas = kKTileRows / 16;
  uint32_t a[kMTiles][kMmas][4];

  // Row r (of g, g + 8), keys 8 n + 2 t + {0, 1} and 8 (n + 1) + 2 t + {0, 1}.
  SAGE_DEVICE void set(int mt, int n, int r, float p0, float p1, float p2, float p3) {
    a[mt][n / 2][r] = kBf16 ? arch::pack_bf16(p0, p1) : arch::pack_f16(p0, p1);
    a[mt][n / 2][r + 2] = kBf16 ? arch::pack_bf16(p2, p3) : arch::pack_f16(p2, p3);
  }
};

// B fragments of 32 keys by 8 channels of 16-bit V: two registers per 16 keys. Shared memory holds panels of 64
// channels, in them groups of 8 keys, in them 8 chunks of 8 channels, in them the keys' 16 bytes: the 8 rows of every
// ldmatrix are 128 consecutive bytes. `v` points to this lane's place, (lane / 8) * 1024 + lane % 8 * 16.
SAGE_DEVICE void load_v16(uint32_t (&b)[4], char const* v, int half, int n) {
  arch::ldmatrix<cute::SM75_U16x8_LDSM_T>(b, v + n / 8 * 8192 + half * 4096 + n % 8 * 128);
}

// acc += a b over two k-tiles of keys.
template <class Op, class Acc>
SAGE_DEVICE void mma_twice(Acc& acc, uint32_t const (&a0)[4], uint32_t const (&a1)[4], uint32_t const (&b)[4]) {
  uint32_t const b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
  arch::mma<Op>(acc, a0, b0, acc);
  arch::mma<Op>(acc, a1, b1, acc);
}

// Calls step(n) for the channel tiles. The barriers keep the compiler from hoisting the loads of all tiles, which would
// not fit the registers.
template <int kTiles, int kTilesAtOnce, class Step>
SAGE_DEVICE void for_channel_tiles(Step const& step) {
  SAGE_UNROLL for (int n = 0; n < kTiles; ++n) {
    if (n > 0 && n % kTilesAtOnce == 0) arch::sync_warp();
    step(n);
  }
}

// O += P V with 16-bit operands, where the accumulators of the tensor core are O.
template <class Op, int kHeadDim, int kMTiles, class Acc, class Probabilities>
SAGE_DEVICE void add_in_place(Acc& acc, Probabilities const& p, char const* v) {
  SAGE_UNROLL for (int half = 0; half < kKTileRows / 32; ++half) {
    for_channel_tiles<kHeadDim / 8, 4>([&](int n) {
      uint32_t b[4];
      load_v16(b, v, half, n);
      SAGE_UNROLL for (int mt = 0; mt < kMTiles; ++mt)
        mma_twice<Op>(acc[mt][n], p.a[mt][2 * half], p.a[mt][2 * half + 1], b);
    });
  }
}

// 16-bit P and V, the float32 accumulators of the tensor core are O.
template <int kHeadDim, int kMTiles, bool kBf16>
struct PvAccumF32 {
  static constexpr int kElementBytes = 2;
  static constexpr Maximum kMaximum = Maximum::kStale;
  static constexpr Divisor kDivisor = Divisor::kProbabilities;
  static constexpr bool kFolds = false;
  // Per lane and row, of 16 probabilities: they stay finite in fp16 (65504), and have its full precision down to 2^-14.
  static constexpr float kSumLimit = 16384.f;
  using Probabilities = Probabilities16<kMTiles, kBf16>;
  using Op = std::conditional_t<kBf16, cute::SM80_16x8x16_F32BF16BF16F32_TN, cute::SM80_16x8x16_F32F16F16F32_TN>;
  float acc[kMTiles][kHeadDim / 8][4] = {};

  SAGE_DEVICE void scale(float const (&factor)[kMTiles][2]) {
    SAGE_UNROLL for (int i = 0; i < kMTiles * kHeadDim / 2; ++i) {
      acc[i / (kHeadDim / 2)][i / 4 % (kHeadDim / 8)][i % 4] *= factor[i / (kHeadDim / 2)][i % 4 / 2];
    }
  }
  SAGE_DEVICE void add(Probabilities const& p, char const* v, float const (&)[kMTiles][2]) {
    add_in_place<Op, kHeadDim, kMTiles>(acc, p, v);
  }
  SAGE_DEVICE float value(int mt, int n, int x) const { return acc[mt][n][x]; }
};

// Bounds of the fp16 accumulators: a lane's 16 probabilities sum to at most 16, as they do under the exact maximum.
constexpr float kF16SumLimit = 16.f;

// fp16 P and V, the fp16 accumulators of the tensor core are O.
template <int kHeadDim, int kMTiles>
struct PvAccumF16 {
  static constexpr int kElementBytes = 2;
  static constexpr Maximum kMaximum = Maximum::kStale;
  static constexpr Divisor kDivisor = Divisor::kProbabilities;
  static constexpr bool kFolds = false;
  static constexpr float kSumLimit = kF16SumLimit;
  using Probabilities = Probabilities16<kMTiles, false>;
  uint32_t acc[kMTiles][kHeadDim / 8][2] = {};

  SAGE_DEVICE void scale(float const (&factor)[kMTiles][2]) {
    SAGE_UNROLL for (int i = 0; i < kMTiles * kHeadDim / 4; ++i) {
      float const f = factor[i / (kHeadDim / 4)][i % 2];
      uint32_t& a = acc[i / (kHeadDim / 4)][i / 2 % (kHeadDim / 8)][i % 2];
      a = arch::multiply_f16x2(a, arch::pack_f16(f, f));
    }
  }
  SAGE_DEVICE void add(Probabilities const& p, char const* v, float const (&)[kMTiles][2]) {
    add_in_place<cute::SM80_16x8x16_F16F16F16F16_TN, kHeadDim, kMTiles>(acc, p, v);
  }
  SAGE_DEVICE float value(int mt, int n, int x) const { return arch::f16_to_float(acc[mt][n][x / 2] >> x % 2 * 16); }
};

// fp16 P and V, fp16 accumulators for one tile of keys, folded into float32.
template <int kHeadDim, int kMTiles>
struct PvAccumF16F32 {
  static constexpr int kElementBytes = 2;
  static constexpr Maximum kMaximum = Maximum::kStale;
  static constexpr Divisor kDivisor = Divisor::kProbabilities;
  static constexpr bool kFolds = false;
  static constexpr float kSumLimit = kF16SumLimit;
  using Probabilities = Probabilities16<kMTiles, false>;
  using Op = cute::SM80_16x8x16_F16F16F16F16_TN;
  PvAccumF32<kHeadDim, kMTiles, false> outer;

  SAGE_DEVICE void scale(float const (&factor)[kMTiles][2]) { outer.scale(factor); }
  SAGE_DEVICE void add(Probabilities const& p, char const* v, float const (&)[kMTiles][2]) {
    for_channel_tiles<kHeadDim / 8, 4>([&](int n) {
      uint32_t b[2][4];
      load_v16(b[0], v, 0, n);
      load_v16(b[1], v, 1, n);
      SAGE_UNROLL for (int mt = 0; mt < kMTiles; ++mt) {
        uint32_t inner[2] = {};
        SAGE_UNROLL for (int half = 0; half < 2; ++half) {
          mma_twice<Op>(inner, p.a[mt][2 * half], p.a[mt][2 * half + 1], b[half]);
        }
        SAGE_UNROLL for (int x = 0; x < 4; ++x)
          outer.acc[mt][n][x] += arch::f16_to_float(inner[x / 2] >> x % 2 * 16);
      }
    });
  }
  SAGE_DEVICE float value(int mt, int n, int x) const { return outer.value(mt, n, x); }
};

// u8 P and s8 V, INT32 accumulators for one tile of keys, folded into float32. P is relative to the tile's own maximum.
template <int kHeadDim, int kMTiles>
struct PvAccumInt8 {
  static constexpr int kElementBytes = 1;
  static constexpr Maximum kMaximum = Maximum::kTile;
  static constexpr Divisor kDivisor = Divisor::kRounded;
  static constexpr bool kFolds = false;

  // The accumulators start at the bits of kRounder, so that they are floats: |sum| <= 255 * 127 * 64 < 2^22.
  static constexpr uint32_t kSeed = arch::kRounderBits;

  struct Probabilities {
    static constexpr int kMmas = kKTileRows / 32;
    uint32_t a[kMTiles][kMmas][4];
    uint32_t sum[kMTiles][2] = {};  // of the rounded values

    SAGE_DEVICE void set(int mt, int n, int r, float p0, float p1, float p2, float p3) {
      uint32_t const bytes = arch::round_to_int8x4(p0, p1, p2, p3, 255.f);
      a[mt][n / 4][n % 4 / 2 * 2 + r] = bytes;
      sum[mt][r] = arch::add_bytes(bytes, sum[mt][r]);
    }
  };
  PvAccumF32<kHeadDim, kMTiles, false> outer;

  SAGE_DEVICE void scale(float const (&factor)[kMTiles][2]) { outer.scale(factor); }
  // `v` points to this lane's place in the panels of v8_offset.
  SAGE_DEVICE void add(Probabilities const& p, char const* v, float const (&factor)[kMTiles][2]) {
    for_channel_tiles<kHeadDim / 8, kMTiles == 2 ? 8 : 1>([&](int n) {
      uint32_t b[4];
      arch::ldmatrix<cute::SM75_U32x4_LDSM_N>(b, v + n / 8 * 4096 + n % 8 * 128);
      SAGE_UNROLL for (int mt = 0; mt < kMTiles; ++mt) {
        uint32_t inner[4] = {kSeed, kSeed, kSeed, kSeed};
        mma_twice<cute::SM80_16x8x32_S32U8S8S32_TN>(inner, p.a[mt][0], p.a[mt][1], b);
        SAGE_UNROLL for (int x = 0; x < 4; ++x) {
          outer.acc[mt][n][x] = fmaf(arch::as_float(inner[x]) - arch::kRounder, factor[mt][x / 2], outer.acc[mt][n][x]);
        }
      }
    });
  }
  SAGE_DEVICE float value(int mt, int n, int x) const { return outer.value(mt, n, x); }
};

}  // namespace sage::tile
