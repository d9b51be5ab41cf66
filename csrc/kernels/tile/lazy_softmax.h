// Online softmax with P in NVFP4 or e4m3 whose references, unlike maxima, seldom move (SageAttention3, section 3.2,
// whose two levels they are): P is 2^(score - reference), where a row's reference is a whole number of octaves.
#pragma once
#include <cfloat>
#include <cmath>
#include <cstdint>

#include "arch/convert.h"
#include "arch/math.h"
#include "arch/simt.h"

namespace sage::tile {

// A warp's scores of 16 rows and 64 keys, as 8 accumulator fragments: lane 4 g + q has rows g and g + 8. Its scores of
// a row in four of them are those of 8 successive keys (common/nvfp4_format.h), half a block of NVFP4 P, of which the
// neighbouring lane has the other half.
struct ScoreTile {
  uint32_t scores[1][8][4];  // bits of floats
  float scale;               // base-2 scores are scores * scale
  // NVFP4: the codes of the scales of this lane's block of the first and of the last 32 keys: of row g in the lowest
  // byte, of row g + 8 in the highest one, with 0 in between.
  uint32_t codes[2];

  // Score j of the 8 of row r (g + 8 r) and the 32 keys h.
  SAGE_DEVICE float score(int h, int r, int j) const { return arch::as_float(scores[0][4 * h + j / 2][2 * r + j % 2]); }
};

// Of the two rows of a lane. A reference moves up where a P would not fit its format: so far that P of the row's
// maximum is at most p_max, a power of two. What was summed with it is multiplied by a power of two.
template <bool kNvfp4>
class LazySoftmax {
 public:
  static constexpr int kRegisters = kNvfp4 ? 4 : 8;  // of P of a ScoreTile

  float reference[2];

  SAGE_DEVICE void begin(float log2_p_max) {
    log2_p_max_ = log2_p_max;
    reference[0] = reference[1] = kNoReference;
    place_codes();
  }

  // Sees to it that P of `tile` fits its format, and sets the codes of its scales. `sums` are accumulators of P V.
  template <int kFragments>
  SAGE_DEVICE void fit(ScoreTile& tile, float (&sums)[kFragments][4]) {
    float largest[2][2];  // of this lane's scores, [32 keys][row]; NaN if one is
    SAGE_UNROLL for (int i = 0; i < 4; ++i) {
      int const h = i / 2, r = i % 2;
      largest[h][r] = tile.score(h, r, 0);
      SAGE_UNROLL for (int j = 1; j < 8; ++j)
        largest[h][r] = arch::max_nan(largest[h][r], tile.score(h, r, j));
    }
    uint32_t codes[2][2];  // of this lane's halves of the blocks, as kRounderBits + code
    if constexpr (kNvfp4) {
      uint32_t worst = 0;  // NaN is the largest
      SAGE_UNROLL for (int i = 0; i < 4; ++i) {
        int const h = i / 2, r = i % 2;
        float const code = arch::fma_down(largest[h][r], 8.f * tile.scale, code_of_one_[r]);
        codes[h][r] = arch::as_uint(arch::max_nan(code, arch::kRounder + kLeastCode));
        worst = worst > codes[h][r] ? worst : codes[h][r];
      }
      if (arch::any(worst > largest_code_)) move(tile, largest, codes, sums);
      SAGE_UNROLL for (int h = 0; h < 2; ++h) {
        uint32_t const mine = arch::permute_bytes(codes[h][0], codes[h][1], 0x4110);
        tile.codes[h] = arch::max_u16x2(mine, arch::shuffle_xor(mine, 1));
      }
    } else {
      bool fits = true;
      SAGE_UNROLL for (int r = 0; r < 2; ++r) {
        float const exponent = fmaf(arch::max_nan(largest[0][r], largest[1][r]), tile.scale, -reference[r]);
        fits = fits && exponent <= kLargestExponent;
      }
      if (arch::any(!fits)) move(tile, largest, codes, sums);
    }
  }

  // P of a tile that fits. NVFP4: register r + 2 h of an A fragment of m16n8k64 is p[r + 2 h]; e4m3: p[4 h] .. p[4 h +
  // 3] are an A fragment of m16n8k32.
  SAGE_DEVICE void exponentiate(ScoreTile const& tile, uint32_t (&p)[kRegisters]) const {
    SAGE_UNROLL for (int i = 0; i < 4; ++i) {
      int const h = i / 2, r = i % 2;
      float zero = reference[r];  // the score that becomes 1
      if constexpr (kNvfp4) {
        // Logarithms of the scales as they are rounded. What codes[h] >> 4 has of row g changes them by 10^-6.
        uint32_t const code = r == 0 ? tile.codes[h] << 20 : tile.codes[h] >> 4;
        zero += arch::log2_approx(arch::as_float(code + kCodeZero));
      }
      float x[8];
      SAGE_UNROLL for (int j = 0; j < 8; ++j)
        x[j] = arch::exp2_approx(fmaf(tile.score(h, r, j), tile.scale, -zero));
      if constexpr (kNvfp4) {
        p[i] = arch::round_to_e2m1x8(x);
      } else {
        p[4 * h + r] = arch::round_to_e4m3x4(x[0], x[1], x[2], x[3], 1.f);
        p[4 * h + r + 2] = arch::round_to_e4m3x4(x[4], x[5], x[6], x[7], 1.f);
      }
    }
  }

 private:
  // Not above that of any score. Finite: its difference from -inf is -inf.
  static constexpr float kNoReference = -FLT_MAX;
  // e4m3: of P, a little less than log2(448).
  static constexpr float kLargestExponent = 8.8f;
  // A block of P with the largest value x has the scale with the code floor(8 log2(x) + 35): x becomes 6.1 to 7.3, of
  // which e2m1 makes 6. Of all such constants this has the least error.
  static constexpr float kCodeOfOne = 35.f;
  // From 8 on ue4m3 numbers are normal; 126 is the largest number, which `move` does not use up.
  static constexpr float kLeastCode = 8.f, kLargestCode = 125.f, kNanCode = 127.f;
  // The bits of a normal ue4m3 number as a float are those of 2^-7, and its code << 20.
  static constexpr uint32_t kCodeZero = (127u - 7u) << 23;
  // Beyond, there is no room for a code in the lowest bits of the float with 8 times the reference.
  static constexpr float kMaxReference = 0x1p18f;

  // Moves references with the maxima of their rows, and the sums with them; sets the codes anew. A NaN stays in its
  // row.
  template <int kFragments>
  SAGE_DEVICE void move(ScoreTile const& tile, float const (&largest)[2][2], uint32_t (&codes)[2][2],
                        float (&sums)[kFragments][4]) {
    SAGE_UNROLL for (int r = 0; r < 2; ++r) {
      float x = arch::max_nan(largest[0][r], largest[1][r]);
      x = arch::max_nan(x, arch::shuffle_xor(x, 1));
      x = arch::max_nan(x, arch::shuffle_xor(x, 2));
      // Rounded down, so that where scores have no fraction left P is rather too large, and saturates, than 0.
      float const least = ceilf(arch::fma_down(x, tile.scale, 0.f)) - log2_p_max_;
      if (!(least <= reference[r])) {
        float const decay = arch::exp2_approx(reference[r] - least);
        reference[r] = least;
        SAGE_UNROLL for (int n = 0; n < kFragments; ++n) {
          sums[n][2 * r] *= decay;
          sums[n][2 * r + 1] *= decay;
        }
      }
    }
    if constexpr (kNvfp4) {
      place_codes();
      SAGE_UNROLL for (int i = 0; i < 4; ++i) {
        int const h = i / 2, r = i % 2;
        float const exponent = fmaf(largest[h][r], tile.scale, -reference[r]);
        float const code = fminf(fmaxf(floorf(8.f * exponent) + kCodeOfOne, kLeastCode), kLargestCode);
        codes[h][r] = arch::as_uint((exponent == exponent ? code : kNanCode) + arch::kRounder);
      }
    }
  }

  SAGE_DEVICE void place_codes() {
    bool fits = true;
    SAGE_UNROLL for (int r = 0; r < 2; ++r) {
      code_of_one_[r] = arch::kRounder + kCodeOfOne - 8.f * reference[r];
      fits = fits && fabsf(reference[r]) <= kMaxReference;
    }
    largest_code_ = fits ? arch::kRounderBits + static_cast<uint32_t>(kLargestCode) : 0;
  }

  float log2_p_max_;
  // NVFP4: kRounder + the code of a block whose largest score is 0; and the largest code, as kRounderBits + code, for
  // which references stay where they are, or 0, if they are so large that only `move` finds codes.
  float code_of_one_[2];
  uint32_t largest_code_;
};

}  // namespace sage::tile
