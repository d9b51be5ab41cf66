// Quantizing and packing: rows of Q, groups of 64 keys of K and V.
//
// A scale group is a row of Q, a row of K, or a channel of V over the sequence. K is centred on its mean first, which
// softmax does not see (SageAttention, section 4.2). Largest quantized values in 8 bits: 127, and 255 for the unsigned
// P; in 16 bits: 4095 for Q, 2047 for K and V, 8191 for P, so that a score's 256 products and the 128 of P V in a step,
// whose P may all be at the maximum, add up to less than 2^31.
#pragma once
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

template <class Isa, class T>
SAGE_INLINE void load_row(T const* src, int head_dim, float* dst) {
  constexpr int W = Isa::kLanes;
  int i = 0;
  for (; i + W <= head_dim; i += W) Isa::store(dst + i, Isa::load(src + i));
  if (i < head_dim) {
    T tail[W] = {};
    memcpy(tail, src + i, (head_dim - i) * sizeof(T));
    Isa::store(dst + i, Isa::load(tail));
    i += W;
  }
  for (; i < padded_head_dim(head_dim); i += W) Isa::store(dst + i, Isa::set(0.f));
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

  template <class Isa>
  __attribute__((always_inline)) void load(int64_t row, float* dst) const {
    with_float_type(dtype, [&](auto type) {
      load_row<Isa>(reinterpret_cast<decltype(type) const*>(data + row * stride_bytes), head_dim, dst);
    });
  }
};

template <class Isa>
SAGE_INLINE float abs_max(float const* x, int n, bool* finite) {
  auto bits = Isa::zero();
  for (int i = 0; i < n; i += Isa::kLanes) bits = Isa::max_abs_bits(bits, Isa::load(x + i));
  int32_t const top = Isa::max(bits);
  *finite = top < 0x7f800000;
  float amax;
  memcpy(&amax, &top, 4);
  return amax > kAmaxFloor ? amax : kAmaxFloor;
}

// Adds rows [begin, end) into sum[padded head dim].
template <class Isa>
SAGE_TILE void sum_rows(Rows rows, int64_t begin, int64_t end, float* sum) {
  int const n = padded_head_dim(rows.head_dim);
  alignas(64) float x[256];
  for (int i = 0; i < n; ++i) sum[i] = 0;
  for (int64_t row = begin; row < end; ++row) {
    rows.load<Isa>(row, x);
    for (int i = 0; i < n; i += Isa::kLanes) Isa::store(sum + i, Isa::add(Isa::load(sum + i), Isa::load(x + i)));
  }
}

// Float bits of the largest |x| of each channel over rows [begin, end).
template <class Isa>
SAGE_TILE void channel_abs_max(Rows rows, int64_t begin, int64_t end, int32_t* amax_bits) {
  int const n = padded_head_dim(rows.head_dim);
  alignas(64) float x[256];
  for (int i = 0; i < n; ++i) amax_bits[i] = 0;
  for (int64_t row = begin; row < end; ++row) {
    rows.load<Isa>(row, x);
    for (int i = 0; i < n; i += Isa::kLanes)
      Isa::store_int(amax_bits + i, Isa::max_abs_bits(Isa::load_int(amax_bits + i), Isa::load(x + i)));
  }
}

// Quantizes x * inverse_scale into `dst`. Returns the sum of the quantized values.
template <class Isa, class T>
SAGE_INLINE int32_t quantize_row(float const* x, int n, float inverse_scale, T* dst) {
  auto const inverse = Isa::set(inverse_scale);
  auto sum = Isa::zero();
  for (int i = 0; i < n; i += Isa::kLanes) {
    auto const q = Isa::round(Isa::mul(Isa::load(x + i), inverse));
    sum = Isa::add_int(sum, q);
    if constexpr (sizeof(T) == 1)
      Isa::store_s8(reinterpret_cast<int8_t*>(dst + i), q);
    else
      Isa::store_s16(reinterpret_cast<int16_t*>(dst + i), q);
  }
  return Isa::sum(sum);
}

// One query row into `dst` (padded head dim operands). Byte operands are biased by 128, because the byte dot product
// takes unsigned times signed; the packed keys carry the correction. Returns the scale; false if a value is not finite.
// A negative softmax scale is folded into the row, so that scores and logits order alike.
template <class Isa, int kBits>
SAGE_INLINE bool pack_query(float const* x, int n, bool negate, void* dst, float* scale) {
  bool finite;
  float const amax = abs_max<Isa>(x, n, &finite);
  *scale = finite ? amax / kQueryMax<kBits> : 0.f;
  float const inverse = finite ? (negate ? -kQueryMax<kBits> : kQueryMax<kBits>) / amax : 0.f;
  if constexpr (Operand<Isa, kBits>::kBytes) {
    uint8_t* const bytes = static_cast<uint8_t*>(dst);
    quantize_row<Isa>(x, n, inverse, bytes);
    for (int i = 0; i < n; ++i) bytes[i] ^= 0x80;  // s8 to u8: adds 128
  } else {
    quantize_row<Isa>(x, n, inverse, static_cast<int16_t*>(dst));
  }
  return finite;
}

// Keys [0, count) of a group to [tile][unit][vector][lane][products], with their scales and the corrections that seed
// the score accumulators, both in score order. Missing keys get zeros and scale 0. Returns false if a key is not
// finite.
template <class Isa, int kBits>
SAGE_TILE bool pack_keys(Rows rows, int64_t row0, int count, float const* mean, void* dst, int32_t* seeds,
                         float* scales) {
  constexpr int kSize = Operand<Isa, kBits>::kSize;
  int const n = padded_head_dim(rows.head_dim);
  int const row_bytes = static_cast<int>(round_up(n * kSize, 64));
  alignas(64) char quantized[kGroup * 256 * kSize];
  alignas(64) float x[256];
  bool all_finite = true;
  for (int key = 0; key < kGroup; ++key) {
    char* const row = quantized + key * row_bytes;
    int const position = score_position<Isa>(key);
    if (key >= count) {
      memset(row, 0, row_bytes);
      seeds[position] = 0;
      scales[position] = 0;
      continue;
    }
    rows.load<Isa>(row0 + key, x);
    for (int i = 0; i < n; i += Isa::kLanes) Isa::store(x + i, Isa::sub(Isa::load(x + i), Isa::load(mean + i)));
    bool finite;
    float const amax = abs_max<Isa>(x, n, &finite);
    all_finite &= finite;
    float const inverse = finite ? kKeyMax<kBits> / amax : 0.f;
    int32_t sum = 0;
    if constexpr (kSize == 1)
      sum = quantize_row<Isa>(x, n, inverse, reinterpret_cast<int8_t*>(row));
    else
      quantize_row<Isa>(x, n, inverse, reinterpret_cast<int16_t*>(row));
    seeds[position] = Operand<Isa, kBits>::kBytes ? -128 * sum : 0;
    scales[position] = finite ? amax / kKeyMax<kBits> : 0.f;
  }
  Isa::pack_keys(reinterpret_cast<uint32_t const*>(quantized), n * kSize / 4, static_cast<uint32_t*>(dst));
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
    for (int e = 0; e < kKeys; ++e) {
      if (step * kKeys + e < count)
        rows.load<Isa>(row0 + step * kKeys + e, x[e]);
      else
        memset(x[e], 0, n * sizeof(float));
    }
    for (int vector = 0; vector < vectors; ++vector) {
      auto const inverse = Isa::load(inverse_scales + vector * W);
      typename Isa::I q[kKeys];
      SAGE_UNROLL for (int e = 0; e < kKeys; ++e)
        q[e] = Isa::round(Isa::mul(Isa::load(x[e] + vector * W), inverse));
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
