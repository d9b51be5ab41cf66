// S = Q K^T for the 16-row tiles of one warp and one tile of 64 keys.
//
// Q and K are tiles of shared memory in the orders of common/quant_format.h. A format has
//   kQBytes, kKBytes              of a tile of Q, and of what a tile of K takes in shared memory
//   kCodeBytes                    of kKBytes, those that `multiply` reads; the others are for smoothing of Q alone
//   kFragments                    of Q, of 16 bytes, that a lane has
//   kServesSmoothQ                whether the kernels add what smoothing of Q took away (tile/q_mean.h)
//   Scores                        accumulator fragments [16-row tile][8 keys][4]
//   place(lane)                   where the lane's first row for ldmatrix is in a tile of K
//   multiply<kStride>(s, q, k, seed)
//                                 s = seed + Q K^T. `q` is this lane's first fragment, the others follow kStride bytes
//                                 apart; `k` is the tile of K + place(lane)
// The accumulators start at `seed`, four times the bits kSeed, so that they are floats, kBias too large, without a
// conversion: |q . k| <= 127 * 127 * 256 < 2^22.
#pragma once
#include <cstdint>
#include <cute/arch/copy_sm75.hpp>
#include <cute/arch/mma_sm80.hpp>

#include "arch/convert.h"
#include "arch/simt.h"
#include "arch/tensor_ops.h"
#include "common/quant_format.h"

namespace sage::tile {

constexpr uint32_t kSeed = arch::kRounderBits;
constexpr float kBias = arch::kRounder;

// Integers of any width: a k-step of the operation takes 32 bytes of a row.
template <class MmaOp, int kRowBytes, int kMTiles>
struct QkIntegers {
  using Op = MmaOp;
  static constexpr int kSteps = kRowBytes / 32, kFragments = kMTiles * kSteps;
  static constexpr int kQBytes = kQTileRows * kRowBytes, kCodeBytes = kKTileRows * kRowBytes;

  using Scores = uint32_t[kMTiles][kKTileRows / 8][4];

  SAGE_DEVICE static uint32_t place(uint32_t lane) { return lane / 8 % 2 * 1024 + (lane / 16 * 8 + lane % 8) * 16; }

  // One k-step of Q at a time is in registers; the barriers keep the compiler from loading more.
  template <int kStride>
  SAGE_DEVICE static void multiply(Scores& s, char const* q, char const* k, uint32_t const (&seed)[4]) {
    SAGE_UNROLL for (int step = 0; step < kSteps; ++step) {
      if (step > 0) arch::sync_warp();
      uint32_t a[kMTiles][4];
      SAGE_UNROLL for (int mt = 0; mt < kMTiles; ++mt) {
        uint4 const fragment = *reinterpret_cast<uint4 const*>(q + (mt * kSteps + step) * kStride);
        a[mt][0] = fragment.x;
        a[mt][1] = fragment.y;
        a[mt][2] = fragment.z;
        a[mt][3] = fragment.w;
      }
      SAGE_UNROLL for (int pair = 0; pair < kKTileRows / 16; ++pair) {
        if (pair == 2) arch::sync_warp();
        uint32_t b[4];
        arch::ldmatrix<cute::SM75_U32x4_LDSM_N>(b, k + step * 2048 + pair * 256);
        SAGE_UNROLL for (int h = 0; h < 2; ++h) {
          uint32_t const bh[2] = {b[2 * h], b[2 * h + 1]};
          SAGE_UNROLL for (int mt = 0; mt < kMTiles; ++mt) {
            auto& acc = s[mt][2 * pair + h];
            if (step == 0) {
              arch::mma<Op>(acc, a[mt], bh, seed);
            } else {
              arch::mma<Op>(acc, a[mt], bh, acc);
            }
          }
        }
      }
    }
  }
};

template <int kHeadDim, int kMTiles>
struct QkInt8 : QkIntegers<cute::SM80_16x8x32_S32S8S8S32_TN, kHeadDim, kMTiles> {
  static constexpr int kKBytes = kKTileRows * kHeadDim;
  static constexpr bool kServesSmoothQ = false;
};

// A tile of K has the plane of its codes, then that of their rests, which is there only with smoothing of Q.
template <int kHeadDim, int kMTiles>
struct QkInt4 : QkIntegers<cute::SM80_16x8x64_S32S4S4S32_TN, kHeadDim / 2, kMTiles> {
  static constexpr int kKBytes = kKTileRows * kHeadDim;
  static constexpr bool kServesSmoothQ = true;
};

}  // namespace sage::tile
