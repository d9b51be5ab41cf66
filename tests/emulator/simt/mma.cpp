#include "simt/mma.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "simt/machine.h"

namespace simt {
namespace {

// What the largest exponent means.
enum class Specials {
  kNone,      // numbers, as the others
  kNanAtTop,  // numbers, but for the largest fraction: NaN
  kIeee,      // inf, NaN
};

template <int kExponentBits, int kFractionBits, Specials kSpecials>
float decode_small_float(uint32_t bits) {
  constexpr int kBias = (1 << (kExponentBits - 1)) - 1, kTop = (1 << kExponentBits) - 1;
  constexpr uint32_t kFractionMask = (1u << kFractionBits) - 1;
  uint32_t const fraction = bits & kFractionMask;
  int const exponent = static_cast<int>(bits >> kFractionBits) & kTop;
  bool const negative = (bits >> (kExponentBits + kFractionBits)) & 1;
  float value;
  if (kSpecials == Specials::kIeee && exponent == kTop) {
    value = fraction ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity();
  } else if (kSpecials == Specials::kNanAtTop && exponent == kTop && fraction == kFractionMask) {
    value = std::numeric_limits<float>::quiet_NaN();
  } else if (exponent == 0) {
    value = std::ldexp(static_cast<float>(fraction), 1 - kBias - kFractionBits);
  } else {
    value = std::ldexp(static_cast<float>(fraction | (1u << kFractionBits)), exponent - kBias - kFractionBits);
  }
  return negative ? -value : value;
}

float decode_ue8m0(uint32_t bits) {
  return bits == 255 ? std::numeric_limits<float>::quiet_NaN() : std::ldexp(1.0f, static_cast<int>(bits) - 127);
}

inline float decode_f16(uint32_t bits) {
  // Shifted into a float's fields the value is 2^-112 times what it should be, subnormals included.
  uint32_t const magnitude = (bits & 0x7fff) << 13, sign = (bits & 0x8000) << 16;
  uint32_t const finite = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
  return std::bit_cast<float>(sign | (magnitude >= 0x7c00u << 13 ? magnitude | 0x7f800000 : finite));
}

inline float decode_bf16(uint32_t bits) { return std::bit_cast<float>(bits << 16); }

template <class Decode>
std::array<float, 256> make_table(Decode decode) {
  std::array<float, 256> table;
  for (uint32_t i = 0; i < 256; ++i) table[i] = decode(i);
  return table;
}

// The values of all bytes. Of an element of fewer than 8 bits the high ones do not count.
struct ByteTables {
  using Table = std::array<float, 256>;
  Table e4m3 = make_table(decode_small_float<4, 3, Specials::kNanAtTop>);
  Table e5m2 = make_table(decode_small_float<5, 2, Specials::kIeee>);
  Table e2m1 = make_table(decode_small_float<2, 1, Specials::kNone>);
  Table e2m3 = make_table(decode_small_float<2, 3, Specials::kNone>);
  Table e3m2 = make_table(decode_small_float<3, 2, Specials::kNone>);
  Table ue4m3 = make_table([](uint32_t b) { return decode_small_float<4, 3, Specials::kNanAtTop>(b & 0x7f); });
  Table ue8m0 = make_table(decode_ue8m0);
  Table s8 = make_table([](uint32_t b) { return static_cast<float>(static_cast<int8_t>(b)); });
  Table u8 = make_table([](uint32_t b) { return static_cast<float>(b); });
  Table s4 = make_table([](uint32_t b) { return static_cast<float>(static_cast<int>((b & 15) ^ 8) - 8); });
  Table u4 = make_table([](uint32_t b) { return static_cast<float>(b & 15); });
};

float const* byte_table(Element element) {
  static ByteTables const tables;
  switch (element) {
    case Element::kE4M3: return tables.e4m3.data();
    case Element::kE5M2: return tables.e5m2.data();
    case Element::kE2M1: return tables.e2m1.data();
    case Element::kE2M3: return tables.e2m3.data();
    case Element::kE3M2: return tables.e3m2.data();
    case Element::kUE4M3: return tables.ue4m3.data();
    case Element::kUE8M0: return tables.ue8m0.data();
    case Element::kS8: return tables.s8.data();
    case Element::kU8: return tables.u8.data();
    case Element::kS4: return tables.s4.data();
    case Element::kU4: return tables.u4.data();
    default: fail("no byte table for elements of %d bits", element_bits(element));
  }
}

template <class T>
[[gnu::always_inline]] inline void multiply_rows(int M, int N, int K, float const* a, float const* b, T* d) {
  constexpr int kRows = 8;  // of d at a time, in vector registers
  for (int n = 0; n < N; ++n) {
    for (int m0 = 0; m0 < M; m0 += kRows) {
      T sum[kRows] = {};
      for (int k = 0; k < K; ++k) {
        T const factor = b[k * N + n];
        for (int m = 0; m < kRows; ++m) sum[m] += static_cast<T>(a[k * M + m0 + m]) * factor;
      }
      for (int m = 0; m < kRows; ++m) d[n * M + m0 + m] = sum[m];
    }
  }
}

constexpr int kMaxOperand = 16 * 256, kMaxAccumulator = 16 * 8;  // elements of mma.sync: 16x8x256 at most

// d = add(c, dot) for all registers of the warp, which hold values of type C.
template <class C, class T, class Add>
void add_accumulators(WarpMma const& mma, T const* dot, void** slots, Add add) {
  int const count = static_cast<int>(mma.c_index.size()) / 32;
  for (int lane = 0; lane < 32; ++lane) {
    auto const& registers = *static_cast<MmaRegisters const*>(slots[lane]);
    uint16_t const* index = &mma.c_index[lane * count];
    auto const* c = static_cast<C const*>(registers.c);
    auto* d = static_cast<C*>(registers.d);
    for (int v = 0; v < count; ++v) d[v] = add(c[v], dot[index[v]]);
  }
}

int32_t add_s32(int32_t c, float dot) { return static_cast<int32_t>(c + static_cast<int64_t>(dot)); }
int32_t add_s32_saturate(int32_t c, float dot) {
  constexpr int64_t kMin = std::numeric_limits<int32_t>::min(), kMax = std::numeric_limits<int32_t>::max();
  return static_cast<int32_t>(std::clamp(c + static_cast<int64_t>(dot), kMin, kMax));
}

// x cut towards zero to 13 fraction bits of `largest`.
float cut_fp22(float x, float largest) {
  constexpr int kFractionBits = 13, kMinExponent = -100;  // below anything an accumulator could see
  int exponent;
  std::frexp(largest, &exponent);
  float const ulp = std::ldexp(1.0f, std::max(exponent - 1 - kFractionBits, kMinExponent));
  return std::trunc(x / ulp) * ulp;
}

}  // namespace

float decode(Element element, uint32_t bits) {
  if (element == Element::kF16) return decode_f16(bits);
  if (element == Element::kBF16) return decode_bf16(bits);
  return byte_table(element)[bits & 255];
}

void decode_packed(Element element, void const* registers, int count, uint16_t const* index, float* out) {
  if (element_bits(element) == 16) {
    auto const* words = static_cast<uint16_t const*>(registers);
    if (element == Element::kF16) {
      for (int v = 0; v < count; ++v) out[index[v]] = decode_f16(words[v]);
    } else {
      for (int v = 0; v < count; ++v) out[index[v]] = decode_bf16(words[v]);
    }
    return;
  }
  auto const* bytes = static_cast<uint8_t const*>(registers);
  float const* table = byte_table(element);
  if (element_bits(element) == 4) {
    for (int v = 0; v < count; v += 2) {
      out[index[v]] = table[bytes[v / 2] & 15];
      out[index[v + 1]] = table[bytes[v / 2] >> 4];
    }
  } else {
    for (int v = 0; v < count; ++v) out[index[v]] = table[bytes[v]];
  }
}

void multiply(int M, int N, int K, float const* a, float const* b, float* d) { multiply_rows(M, N, K, a, b, d); }
void multiply(int M, int N, int K, float const* a, float const* b, double* d) { multiply_rows(M, N, K, a, b, d); }

uint16_t add_f16(uint16_t c, double dot) {
  double const x = decode_f16(c) + dot;
  uint16_t const sign = std::signbit(x) ? 0x8000 : 0;
  double const magnitude = std::fabs(x);
  if (std::isnan(x)) return 0x7fff;
  if (magnitude >= 65520.0) return sign | 0x7c00;  // halfway from 65504 to 65536
  if (magnitude == 0) return sign;
  int exponent;
  std::frexp(magnitude, &exponent);                   // magnitude < 2^exponent
  int const ulp_log2 = std::max(exponent - 11, -24);  // 11 significant bits; 2^-24 below 2^-14
  double const units = std::nearbyint(std::ldexp(magnitude, -ulp_log2));
  // As fields: one unit is one step of the code, and a carry into the exponent is what a carry of the code is.
  auto const code = static_cast<uint32_t>(units) + (static_cast<uint32_t>(ulp_log2 + 24) << 10);
  return sign | static_cast<uint16_t>(code);
}

float add_fp22(float c, float dot) {
  if (!std::isfinite(c) || !std::isfinite(dot)) return c + dot;
  float const largest = std::max(std::fabs(c), std::fabs(dot));
  float const sum = cut_fp22(c, largest) + cut_fp22(dot, largest);
  return cut_fp22(sum, sum);
}

float add_fp8(float c, float dot) {
  return machine().config.accumulate == Accumulate::kReduced ? add_fp22(c, dot) : c + dot;
}

void check_layouts(WarpMma const& mma, char const* name) {
  auto const check = [name](char operand, std::vector<uint16_t> const& index, int size) {
    std::vector<int> covered(size);
    for (uint16_t i : index) covered.at(i) += 1;
    for (int i = 0; i < size; ++i) {
      if (covered[i] != 1) fail("%s: its traits give element %d of %c to %d registers", name, i, operand, covered[i]);
    }
  };
  check('A', mma.a_index, mma.M * mma.K);
  check('B', mma.b_index, mma.N * mma.K);
  check('C', mma.c_index, mma.M * mma.N);
}

void warp_mma(WarpMma const& mma, void** slots) {
  ++t_stats.mma;
  alignas(64) float a[kMaxOperand], b[kMaxOperand];
  int const a_count = static_cast<int>(mma.a_index.size()) / 32, b_count = static_cast<int>(mma.b_index.size()) / 32;
  for (int lane = 0; lane < 32; ++lane) {
    auto const& registers = *static_cast<MmaRegisters const*>(slots[lane]);
    decode_packed(mma.a, registers.a, a_count, &mma.a_index[lane * a_count], a);
    decode_packed(mma.b, registers.b, b_count, &mma.b_index[lane * b_count], b);
  }
  if (mma.accumulator == Accumulator::kF16) {
    alignas(64) double dot[kMaxAccumulator];
    multiply(mma.M, mma.N, mma.K, a, b, dot);
    add_accumulators<uint16_t>(mma, dot, slots, add_f16);
    return;
  }
  alignas(64) float dot[kMaxAccumulator];
  multiply(mma.M, mma.N, mma.K, a, b, dot);
  if (mma.accumulator == Accumulator::kS32) {
    add_accumulators<int32_t>(mma, dot, slots, mma.saturate ? add_s32_saturate : add_s32);
  } else if (is_fp8(mma.a) && is_fp8(mma.b)) {
    add_accumulators<float>(mma, dot, slots, add_fp8);
  } else {
    add_accumulators<float>(mma, dot, slots, [](float c, float x) { return c + x; });
  }
}

}  // namespace simt
