// The arithmetic of tensor-core instructions on bits in registers, for any layout.
#pragma once
#include <cstdint>
#include <vector>

namespace simt {

enum class Element { kS8, kU8, kS4, kU4, kF16, kBF16, kE4M3, kE5M2, kE2M1, kE2M3, kE3M2, kUE4M3, kUE8M0 };
enum class Accumulator { kS32, kF32, kF16 };

constexpr int element_bits(Element e) {
  switch (e) {
    case Element::kS4:
    case Element::kU4:
    case Element::kE2M1: return 4;
    case Element::kE2M3:
    case Element::kE3M2: return 6;
    case Element::kF16:
    case Element::kBF16: return 16;
    default: return 8;
  }
}
constexpr bool is_fp8(Element e) { return e == Element::kE4M3 || e == Element::kE5M2; }

// The value of one element, given its bits in the low end.
float decode(Element element, uint32_t bits);
// Values 0..count of packed registers (4, 8 or 16 bits each): out[index[v]] = value v.
void decode_packed(Element element, void const* registers, int count, uint16_t const* index, float* out);

// d[n * M + m] = sum over k of a[k * M + m] * b[k * N + n], in the order of k, in float. Integer operands of up to
// 8 bits and K <= 256 are summed exactly.
void multiply(int M, int N, int K, float const* a, float const* b, float* d);
void multiply(int M, int N, int K, float const* a, float const* b, double* d);

// c + dot, rounded once to float16, and its bits.
uint16_t add_f16(uint16_t c, double dot);
// c + dot in the FP8 accumulator of sm89 and sm90 (Accumulate::kReduced): both are aligned to the larger one's exponent
// and cut below 13 fraction bits, and the sum is cut to 13 fraction bits; the model of
// sage.reference.numerics.add_fp22.
float add_fp22(float c, float dot);
// What an FP8 instruction with a float accumulator makes of c + dot under the configuration of this launch.
float add_fp8(float c, float dot);

// An mma.sync instruction. The tables are flattened [lane][value] and give A as k * M + m, B as k * N + n and C, D as
// n * M + m.
struct WarpMma {
  int M, N, K;
  Element a, b;
  Accumulator accumulator;
  bool saturate;  // of kS32: clamp instead of wrapping around
  std::vector<uint16_t> a_index, b_index, c_index;
};

// Throws unless the tables cover each operand exactly once.
void check_layouts(WarpMma const& mma, char const* name);

struct MmaRegisters {  // of one lane
  void const *a, *b, *c;
  void* d;
};

// D = A B + C for a warp; slots[l] is lane l's MmaRegisters.
void warp_mma(WarpMma const& mma, void** slots);

}  // namespace simt
