// Quantizing and packing: rows of Q, groups of 64 keys of K and V.
//
// A scale group is a row of Q, a row of K, or a channel of V over the sequence. K is centred on its mean first, which
// softmax does not see (SageAttention, section 4.2). Largest quantized values in 8 bits: 127, and 255 for the unsigned
// P; in 16 bits: 4095 for Q, 2047 for K and V, 8191 for P, so that a score's 256 products and the 128 of P V in a step,
// whose P may all be at the maximum, add up to less than 2^31.
#pragma once
#include <type_traits>

#include "cpu/simd.h"

namespace sage::cpu {
namespace {

constexpr float kAmaxFloor = 1e-34f;  // keeps 4095 / amax finite; smaller rows and channels only lose precision

template <int kBits>
constexpr float kQueryMax = kBits == 8 ? 127.f : 4095.f;
template <int kBits>
constexpr float kKeyMax = kBits == 8 ? 127.f : 2047.f;
template <int kBits>
constexpr float kValueMax = kKeyMax<kBits>;
template <int kBits>
constexpr float kProbabilityMax = kBits == 8 ? 255.f : 8191.f;

// How kBits operands are held: bytes where the byte dot product exists, halfwords otherwise.
template <class Isa, int kBits>
struct Operand {
  static constexpr bool kBytes = kBits == 8 && Isa::kHasDot8;
  static constexpr int kSize = kBytes ? 1 : 2;
  static constexpr int kPerLane = 4 / kSize;  // products of one lane in one dot product
};

// Head dims are padded with zeros to a multiple of 16: whole vectors of channels and whole 4-byte units of keys.
constexpr int padded_head_dim(int head_dim) { return static_cast<int>(round_up(head_dim, 16)); }

// op(i, vector) for every vector of a row, at channels i to i + kLanes of the padded head dim.
template <class Isa, class T, class Op>
SAGE_INLINE void visit_row(T const* src, int head_dim, Op&& op) {
  constexpr int W = Isa::kLanes;
  int i = 0;
  for (; i + W <= head_dim; i += W) op(i, Isa::load(src + i));
  if (i < head_dim) {
    T tail[W] = {};
    memcpy(tail, src + i, (head_dim - i) * sizeof(T));
    op(i, Isa::load(tail));
    i += W;
  }
  for (; i < padded_head_dim(head_dim); i += W) op(i, Isa::set(0.f));
}

template <class Isa, class T>
SAGE_INLINE void store_row(float const* src, int head_dim, T* dst) {
  constexpr int W = Isa::kLanes;
  int i = 0;
  for (; i + W <= head_dim; i += W) Isa::store(dst + i, Isa::load(src + i));
  if (i < head_dim) {
    T tail[W];
    Isa::store(tail, Isa::load(src + i));
    memcpy(dst + i, tail, (head_dim - i) * sizeof(T));
  }
}

// A strided sequence of rows of one head.
struct Rows {
  char const* data;
  int64_t stride_bytes;
  DType dtype;
  int head_dim;

  Rows(TensorView const& view, DType dtype, int head_dim, int64_t batch, int64_t head, int64_t row)
      : dtype(dtype), head_dim(head_dim) {
    int64_t const size = dtype == DType::kFloat32 ? 4 : 2;
    stride_bytes = view.stride_seq * size;
    data = static_cast<char const*>(view.data) +
           (batch * view.stride_batch + head * view.stride_head + row * view.stride_seq) * size;
  }

  // f(row pointer) for each row in [begin, end); the pointer has the element type.
  template <class F>
  __attribute__((always_inline)) void each(int64_t begin, int64_t end, F&& f) const {
    with_float_type(dtype, [&](auto type) {
      for (int64_t row = begin; row < end; ++row) f(reinterpret_cast<decltype(type) const*>(data + row * stride_bytes));
    });
  }
};

// How a group of values is quantized: q = round(x * inverse), x = q * scale. Both are 0 if a value is not finite.
struct Scale {
  float scale, inverse;
  bool finite;

  // From the float bits of the group's largest magnitude and the quantized value that it maps to.
  Scale(int32_t amax_bits, float limit) : finite(amax_bits < 0x7f800000) {
    float amax;
    memcpy(&amax, &amax_bits, 4);
    amax = amax > kAmaxFloor ? amax : kAmaxFloor;
    scale = finite ? amax / limit : 0.f;
    inverse = finite ? limit / amax : 0.f;
  }
};

// Adds rows [begin, end) up into sum[padded head dim].
template <class Isa>
SAGE_TILE void sum_rows(Rows rows, int64_t begin, int64_t end, float* sum) {
  for (int i = 0; i < padded_head_dim(rows.head_dim); ++i) sum[i] = 0;
  rows.each(begin, end, [&](auto const* row) {
    visit_row<Isa>(row, rows.head_dim, [&](int i, auto x) { Isa::store(sum + i, Isa::add(Isa::load(sum + i), x)); });
  });
}

// Float bits of the largest |x| of each channel over rows [begin, end).
template <class Isa>
SAGE_TILE void channel_abs_max(Rows rows, int64_t begin, int64_t end, int32_t* amax_bits) {
  for (int i = 0; i < padded_head_dim(rows.head_dim); ++i) amax_bits[i] = 0;
  rows.each(begin, end, [&](auto const* row) {
    visit_row<Isa>(row, rows.head_dim, [&](int i, auto x) {
      Isa::store_int(amax_bits + i, Isa::max_abs_bits(Isa::load_int(amax_bits + i), x));
    });
  });
}

// Quantizes x * inverse_scale into `dst`.
template <class Isa, class T>
SAGE_INLINE void quantize_row(float const* x, int n, float inverse_scale, T* dst) {
  auto const inverse = Isa::set(inverse_scale);
  for (int i = 0; i < n; i += Isa::kLanes) {
    auto const q = Isa::round(Isa::mul(Isa::load(x + i), inverse));
    if constexpr (sizeof(T) == 1)
      Isa::store_s8(dst + i, q);
    else
      Isa::store_s16(dst + i, q);
  }
}

// One query row x into `dst` (padded head dim operands). Byte operands are biased by 128, because the byte dot product
// takes unsigned times signed; the packed keys carry the correction.
template <class Isa, int kBits>
SAGE_INLINE void pack_query(float const* x, int n, float inverse_scale, void* dst) {
  if constexpr (Operand<Isa, kBits>::kBytes) {
    int8_t* const bytes = static_cast<int8_t*>(dst);
    quantize_row<Isa>(x, n, inverse_scale, bytes);
    for (int i = 0; i < n; ++i) bytes[i] ^= -128;  // s8 to u8: adds 128
  } else {
    quantize_row<Isa>(x, n, inverse_scale, static_cast<int16_t*>(dst));
  }
}

// Keys [0, count) of a group to [tile][unit][vector][lane][products], with their scales and the corrections that seed
// the score accumulators, both in score order. Missing keys get zeros and scale 0. Returns false if a key is not
// finite.
template <class Isa, int kBits>
SAGE_TILE bool pack_keys(Rows rows, int64_t row0, int count, float const* mean, void* dst, int32_t* seeds,
                         float* scales) {
  using T = typename std::conditional<Operand<Isa, kBits>::kBytes, int8_t, int16_t>::type;
  int const n = padded_head_dim(rows.head_dim), stride = static_cast<int>(round_up(n, 64 / sizeof(T)));
  alignas(64) T quantized[kGroup * 256];
  alignas(64) float x[256];
  bool all_finite = true;
  int key = 0;
  rows.each(row0, row0 + count, [&](auto const* row) {
    auto bits = Isa::zero();
    visit_row<Isa>(row, rows.head_dim, [&](int i, auto value) {
      auto const centred = Isa::sub(value, Isa::load(mean + i));
      Isa::store(x + i, centred);
      bits = Isa::max_abs_bits(bits, centred);
    });
    Scale const scale(Isa::max(bits), kKeyMax<kBits>);
    all_finite &= scale.finite;
    quantize_row<Isa>(x, n, scale.inverse, quantized + key * stride);
    scales[score_position<Isa>(key)] = scale.scale;
    ++key;
  });
  for (; key < kGroup; ++key) {
    memset(quantized + key * stride, 0, stride * sizeof(T));
    scales[score_position<Isa>(key)] = 0;
  }
  int const units = n * static_cast<int>(sizeof(T)) / 4;
  Isa::pack_keys(reinterpret_cast<uint32_t const*>(quantized), units, static_cast<uint32_t*>(dst));
  if constexpr (Operand<Isa, kBits>::kBytes) {  // minus the bias of Q times the sum of the key
    constexpr int W = Isa::kLanes, kTile = Isa::kVecs * W;
    char const* packed = static_cast<char const*>(dst);
    for (int position = 0; position < kGroup; position += W) {
      auto bias = Isa::zero();
      for (int unit = 0; unit < units; ++unit) {
        int const vector = position / kTile * units * Isa::kVecs + unit * Isa::kVecs + position % kTile / W;
        Isa::dot8(bias, Isa::set_int(static_cast<int32_t>(0x80808080)), Isa::load_int(packed + vector * W * 4));
      }
      Isa::store_int(seeds + position, bias);
    }
    for (int position = 0; position < kGroup; ++position) seeds[position] = -seeds[position];
  }
  return all_finite;
}

// Keys [0, count) of a group of V to [channel tile][step][vector][channel][keys]; a step is the keys of one dot
// product.
template <class Isa, int kBits>
SAGE_TILE void pack_values(Rows rows, int64_t row0, int count, float const* inverse_scales, void* dst) {
  constexpr int kKeys = Operand<Isa, kBits>::kPerLane, W = Isa::kLanes;
  int const n = padded_head_dim(rows.head_dim), vectors = n / W;
  alignas(64) float x[kKeys][256];
  for (int step = 0; step < kGroup / kKeys; ++step) {
    int const present = static_cast<int>(max64(0, min64(kKeys, count - step * kKeys)));
    int e = 0;
    rows.each(row0 + step * kKeys, row0 + step * kKeys + present, [&](auto const* row) {
      visit_row<Isa>(row, rows.head_dim, [&](int i, auto value) { Isa::store(x[e] + i, value); });
      ++e;
    });
    for (; e < kKeys; ++e) memset(x[e], 0, n * sizeof(float));
    for (int vector = 0; vector < vectors; ++vector) {
      auto const inverse = Isa::load(inverse_scales + vector * W);
      typename Isa::I q[kKeys];
      SAGE_CPU_UNROLL for (int j = 0; j < kKeys; ++j)
        q[j] = Isa::round(Isa::mul(Isa::load(x[j] + vector * W), inverse));
      int const first = vector / Isa::kVecs * Isa::kVecs;  // of this channel tile
      int const tile_vectors = vectors - first < Isa::kVecs ? vectors - first : Isa::kVecs;
      char* const out =
          static_cast<char*>(dst) + (first * (kGroup / kKeys) + step * tile_vectors + vector - first) * W * 4;
      if constexpr (kKeys == 4)
        Isa::store_int(out, Isa::interleave4(q));
      else
        Isa::store_int(out, Isa::interleave2(q));
    }
  }
}

}  // namespace
}  // namespace sage::cpu
