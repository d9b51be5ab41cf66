// The steps of one strip (kRows query rows) against one key block: scores, mask, softmax, P V.
#pragma once
#include "common/mask.h"
#include "cpu/attention_pack.h"

namespace sage::cpu {
namespace {

// Scores of a strip and one group of 64 keys: s = (q . k) * key scale, in score order, and the running maximum per
// lane.
template <class Isa, int kBits>
SAGE_TILE void qk_tile(void const* q, int head_dim, void const* k, int32_t const* seeds, float const* scales, float* s,
                       int64_t s_stride, typename Isa::F* row_max) {
  using I = typename Isa::I;
  constexpr int kSize = Operand<Isa, kBits>::kSize, kPerLane = Operand<Isa, kBits>::kPerLane;
  constexpr int kRows = Isa::kRows, kVecs = Isa::kVecs, W = Isa::kLanes, kTile = kVecs * W;
  int const units = head_dim / kPerLane;
  char const* keys = static_cast<char const*>(k);
  for (int tile = 0; tile < kGroup / kTile; ++tile) {
    I acc[kRows][kVecs];
    SAGE_CPU_UNROLL for (int v = 0; v < kVecs; ++v) {
      I const seed = Operand<Isa, kBits>::kBytes ? Isa::load_int(seeds + tile * kTile + v * W) : Isa::zero();
      SAGE_CPU_UNROLL for (int r = 0; r < kRows; ++r)
        acc[r][v] = seed;
    }
    for (int unit = 0; unit < units; ++unit, keys += kTile * 4) {
      I kv[kVecs];
      SAGE_CPU_UNROLL for (int v = 0; v < kVecs; ++v)
        kv[v] = Isa::load_int(keys + v * W * 4);
      SAGE_CPU_UNROLL for (int r = 0; r < kRows; ++r) {
        I const qv = Isa::broadcast4(static_cast<char const*>(q) + (r * head_dim + unit * kPerLane) * kSize);
        SAGE_CPU_UNROLL for (int v = 0; v < kVecs; ++v) {
          if constexpr (Operand<Isa, kBits>::kBytes)
            Isa::dot8(acc[r][v], qv, kv[v]);
          else
            Isa::dot16(acc[r][v], qv, kv[v]);
        }
      }
    }
    SAGE_CPU_UNROLL for (int r = 0; r < kRows; ++r) {
      auto top = row_max[r];
      SAGE_CPU_UNROLL for (int v = 0; v < kVecs; ++v) {
        int const column = tile * kTile + v * W;
        auto const x = Isa::mul(Isa::to_float(acc[r][v]), Isa::load(scales + column));
        Isa::store(s + r * s_stride + column, x);
        top = Isa::max(top, x);
      }
      row_max[r] = top;
    }
  }
}

// The attention mask of one (batch, head).
struct HeadMask {
  char const* data;  // nullptr: none
  DType dtype;
  int64_t stride_q, stride_k;

  HeadMask(MaskView const& view, int64_t batch, int64_t head)
      : data(static_cast<char const*>(view.data)), dtype(view.dtype), stride_q(view.stride_q), stride_k(view.stride_k) {
    if (data) data += (batch * view.stride_batch + head * view.stride_head) * element_size();
  }
  int64_t element_size() const { return dtype == DType::kBool ? 1 : dtype == DType::kFloat32 ? 4 : 2; }

  // bias[0, count) = the mask of keys [col, col + count) in base-2 units, -inf where a key is hidden. A finite mask
  // value stays finite, +inf becomes the largest finite value, NaN 0. Returns whether a value is NaN.
  template <class Isa>
  bool load(int64_t row, int64_t col, int count, float* bias) const {
    char const* const src = data + (row * stride_q + col * stride_k) * element_size();
    if (dtype == DType::kBool) {
      for (int j = 0; j < count; ++j) bias[j] = src[j * stride_k] ? 0.f : -kInfinity;
      return false;
    }
    with_float_type(dtype, [&](auto type) {
      using T = decltype(type);
      T const* values = reinterpret_cast<T const*>(src);
      T gathered[kGroup] = {};
      for (int j = 0; j < count; ++j) gathered[j] = values[j * stride_k];
      for (int j = 0; j < kGroup; j += Isa::kLanes) Isa::store(bias + j, Isa::load(gathered + j));
    });
    bool nan = false;
    for (int j = 0; j < count; ++j) {
      float const x = bias[j] * kLog2e, bounded = x < -kFloatMax ? -kFloatMax : x > kFloatMax ? kFloatMax : x;
      nan |= x != x;
      bias[j] = bias[j] == -kInfinity ? bias[j] : x != x ? 0.f : bounded;
    }
    return nan;
  }
};

// Turns the scores of a strip into base-2 logits with every mask applied, -inf where a key is hidden, and renews the
// maxima. `first_col` is the key at s[0]; rows past the last one repeat it. Sets poisoned[r] where the mask is NaN.
template <class Isa>
SAGE_TILE void mask_strip(float* s, int64_t s_stride, int groups, int64_t first_col, int64_t first_row,
                          int64_t last_row, Mask const& mask, HeadMask const& head_mask, float const* row_scale,
                          typename Isa::F* row_max, bool* poisoned) {
  for (int r = 0; r < Isa::kRows; ++r) {
    int64_t const row = min64(first_row + r, last_row), begin = mask.col_begin(row), end = mask.col_end(row);
    auto top = Isa::set(-kInfinity);
    for (int g = 0; g < groups; ++g) {
      float* const x = s + r * s_stride + g * kGroup;
      int64_t const col = first_col + g * kGroup;
      int const low = static_cast<int>(max64(0, min64(kGroup, begin - col)));
      int const high = static_cast<int>(max64(low, min64(kGroup, end - col)));
      if (head_mask.data || low > 0 || high < kGroup) {
        alignas(64) float bias[kGroup] = {};
        if (head_mask.data && head_mask.load<Isa>(row, col, static_cast<int>(min64(kGroup, mask.seqlen_k - col)), bias))
          poisoned[r] = true;
        for (int j = 0; j < low; ++j) bias[j] = -kInfinity;
        for (int j = high; j < kGroup; ++j) bias[j] = -kInfinity;
        alignas(64) float ordered[kGroup];
        SAGE_CPU_UNROLL for (int j = 0; j < kGroup; j += 4)  // 4 keys in key order are 4 lanes in score order
          memcpy(ordered + score_position<Isa>(j), bias + j, 4 * sizeof(float));
        for (int j = 0; j < kGroup; j += Isa::kLanes)
          Isa::store(x + j, Isa::fma(Isa::load(x + j), Isa::set(row_scale[r]), Isa::load(ordered + j)));
      } else {
        for (int j = 0; j < kGroup; j += Isa::kLanes)
          Isa::store(x + j, Isa::mul(Isa::load(x + j), Isa::set(row_scale[r])));
      }
      for (int j = 0; j < kGroup; j += Isa::kLanes) top = Isa::max(top, Isa::load(x + j));
    }
    row_max[r] = top;
  }
}

// Softmax state of a strip, one row per lane. Lanes past kRows are junk.
template <class Isa>
struct StripState {
  alignas(64) float max[Isa::kLanes];        // largest logit so far in base 2; -FLT_MAX before the first visible key
  alignas(64) float sum[Isa::kLanes];        // of the quantized probabilities: what O is divided by
  alignas(64) float exact_sum[Isa::kLanes];  // of the probabilities before rounding: what the LSE is made of

  void reset() {
    for (int i = 0; i < Isa::kLanes; ++i) {
      max[i] = -kFloatMax;
      sum[i] = exact_sum[i] = 0;
    }
  }
};

// kProbabilityMax * 2^x for x <= 0, with 2^fraction as a polynomial on [0, 1). Relative error 7.5e-5 for 8 bits (degree
// 3), 2.6e-6 for 16 bits (degree 4).
template <class Isa, int kBits>
SAGE_INLINE typename Isa::F probability(typename Isa::F x) {
  constexpr float kMax = kProbabilityMax<kBits>;
  auto const f = Isa::fraction(x);
  auto y = Isa::set(0.0780245201f * kMax);
  if constexpr (kBits == 16) y = Isa::fma(Isa::set(0.0135341676f * kMax), f, Isa::set(0.0520114612f * kMax));
  y = Isa::fma(y, f, Isa::set((kBits == 8 ? 0.226067159f : 0.241442757f) * kMax));
  y = Isa::fma(y, f, Isa::set((kBits == 8 ? 0.695833539f : 0.693003835f) * kMax));
  y = Isa::fma(y, f, Isa::set((kBits == 8 ? 0.999925219f : 1.00000259f) * kMax));
  return Isa::scale_by_power(y, x);
}

// Probabilities of a strip and block, quantized with one scale per row: p = round(max * 2^(logit - block maximum)).
// Leaves in old_factor what the accumulated O is multiplied by, in new_factor what the integer sums of this block are.
template <class Isa, int kBits, bool kExactSum>
SAGE_TILE void softmax_strip(float const* s, int64_t s_stride, int groups, typename Isa::F const* row_max,
                             float const* row_scale, void* p, int64_t p_stride, StripState<Isa>& state,
                             float* old_factor, float* new_factor) {
  using F = typename Isa::F;
  using Probability = typename std::conditional<Operand<Isa, kBits>::kBytes, uint8_t, int16_t>::type;
  constexpr int W = Isa::kLanes;
  alignas(64) float score_max[W];
  F const lowest = Isa::set(-kFloatMax);  // a row whose keys are all hidden: 2^(-inf + FLT_MAX) = 0 for each of them
  F const strip_max = Isa::max(Isa::max_rows(row_max), lowest), scale = Isa::load(row_scale);
  Isa::store(score_max, strip_max);
  F const block_max = Isa::mul(strip_max, scale), old_max = Isa::load(state.max),
          new_max = Isa::max(old_max, block_max);
  F const keep = exp2_exact<Isa>(Isa::sub(old_max, new_max));
  F const take = Isa::mul(exp2_exact<Isa>(Isa::sub(block_max, new_max)), Isa::set(1.f / kProbabilityMax<kBits>));
  Isa::store(state.max, new_max);
  Isa::store(old_factor, keep);
  Isa::store(new_factor, take);

  F sums[Isa::kRows], exact_sums[Isa::kRows];
  for (int r = 0; r < Isa::kRows; ++r) {
    F const row_max_r = Isa::set(score_max[r]), scale_r = Isa::set(row_scale[r]);
    auto sum = Isa::zero();
    F exact = Isa::set(0.f);
    float const* x = s + r * s_stride;
    Probability* out = static_cast<Probability*>(p) + r * p_stride;
    for (int i = 0; i < groups * kGroup; i += 4 * W) {
      F y[4];
      SAGE_CPU_UNROLL for (int v = 0; v < 4; ++v) {
        F const logit = Isa::mul(Isa::sub(Isa::load(x + i + v * W), row_max_r), scale_r);  // never above 0
        y[v] = probability<Isa, kBits>(logit);
        if constexpr (kExactSum) exact = Isa::add(exact, y[v]);
      }
      Isa::store_probabilities(out + i, y, sum);
    }
    sums[r] = Isa::to_float(sum);
    exact_sums[r] = exact;
  }
  Isa::store(state.sum, Isa::fma(Isa::load(state.sum), keep, Isa::mul(Isa::sum_rows(sums), take)));
  if constexpr (kExactSum)
    Isa::store(state.exact_sum, Isa::fma(Isa::load(state.exact_sum), keep, Isa::mul(Isa::sum_rows(exact_sums), take)));
}

// o = o * old_factor + (P V) * new_factor for a strip and kTileVecs vectors of channels. `v` points at the channel tile
// of the first group; groups are v_stride bytes apart.
template <class Isa, int kBits, int kTileVecs>
SAGE_TILE void pv_tile(void const* p, int64_t p_stride, void const* v, int64_t v_stride, int groups,
                       float const* old_factor, float const* new_factor, float* o, int o_stride) {
  using I = typename Isa::I;
  constexpr int kRows = Isa::kRows, W = Isa::kLanes, kSize = Operand<Isa, kBits>::kSize;
  I acc[kRows][kTileVecs];
  SAGE_CPU_UNROLL for (int r = 0; r < kRows; ++r) {
    SAGE_CPU_UNROLL for (int c = 0; c < kTileVecs; ++c)
      acc[r][c] = Isa::zero();
  }
  char const* probabilities = static_cast<char const*>(p);
  for (int g = 0; g < groups; ++g) {
    char const* values = static_cast<char const*>(v) + g * v_stride;
    for (int step = 0; step < kGroup * kSize / 4; ++step, probabilities += 4, values += kTileVecs * W * 4) {
      I vv[kTileVecs];
      SAGE_CPU_UNROLL for (int c = 0; c < kTileVecs; ++c)
        vv[c] = Isa::load_int(values + c * W * 4);
      SAGE_CPU_UNROLL for (int r = 0; r < kRows; ++r) {
        I const pv = Isa::broadcast4(probabilities + r * p_stride * kSize);
        SAGE_CPU_UNROLL for (int c = 0; c < kTileVecs; ++c) {
          if constexpr (Operand<Isa, kBits>::kBytes)
            Isa::dot8(acc[r][c], pv, vv[c]);
          else
            Isa::dot16(acc[r][c], pv, vv[c]);
        }
      }
    }
  }
  SAGE_CPU_UNROLL for (int r = 0; r < kRows; ++r) {
    auto const keep = Isa::set(old_factor[r]), take = Isa::set(new_factor[r]);
    SAGE_CPU_UNROLL for (int c = 0; c < kTileVecs; ++c) {
      float* const out = o + r * o_stride + c * W;
      Isa::store(out, Isa::fma(Isa::to_float(acc[r][c]), take, Isa::mul(Isa::load(out), keep)));
    }
  }
}

}  // namespace
}  // namespace sage::cpu
