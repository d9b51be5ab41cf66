// What the kernel template asks of an instruction set.
//
// An `Isa` is a struct of static functions on two vector types: F (kLanes floats) and I (the same bits as int32 lanes,
// or as the 4 * kLanes bytes / 2 * kLanes halfwords that the dot products read).
//
//   kLanes     vector width in 32-bit lanes
//   kRows      query rows of a register tile (a "strip"); kRows * kVecs accumulators stay in registers
//   kVecs      key or channel vectors of a register tile
//   kHasDot8   dot8 exists; otherwise 8-bit operands are kept in 16 bits and multiplied with dot16
//
// Everything here and in the isa_*.h, attention_*.h headers has internal linkage: every translation unit is compiled
// with other instructions, and a function that the linker shared between them would crash on the lesser CPU.
#pragma once
#include <cstdint>
#include <cstring>

#include "sage/attention.h"

#define SAGE_INLINE static inline __attribute__((always_inline))
// GCC 12 spills every accumulator of a register tile that is inlined into a larger function.
#define SAGE_TILE static __attribute__((noinline))
#define SAGE_CPU_UNROLL _Pragma("GCC unroll 32")

namespace sage::cpu {
namespace {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

constexpr float kInfinity = __builtin_inff();
constexpr float kFloatMax = __FLT_MAX__;
constexpr float kLog2e = 1.44269504088896341f;
constexpr float kLn2 = 0.69314718055994531f;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
constexpr int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

// Calls f with a value of the C++ type behind `dtype` (float dtypes only).
template <class F>
SAGE_INLINE void with_float_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat32: return f(float{});
    case DType::kFloat16: return f(Half{});
    default: return f(BFloat16{});
  }
}

// Keys are packed in groups of 64. Inside a group, score vectors hold the keys in an order that lets the packs of four
// probability vectors come out in natural order: key j sits at position score_position<Isa>(j).
constexpr int kGroup = 64;

template <class Isa>
constexpr int score_position(int key) {
  constexpr int kTile = Isa::kVecs * Isa::kLanes;  // keys of one register tile
  int const in_tile = key % kTile;
  return key / kTile * kTile + in_tile / 4 % Isa::kVecs * Isa::kLanes + in_tile / (4 * Isa::kVecs) * 4 + in_tile % 4;
}

// Rows of 64 keys, `row_units` 4-byte units each (padded to 16 in memory), to [tile][unit][vector][lane] in score
// order.
template <class Isa>
SAGE_INLINE void pack_keys_scalar(uint32_t const* rows, int row_units, uint32_t* dst) {
  constexpr int kTile = Isa::kVecs * Isa::kLanes;
  int const row_stride = static_cast<int>(round_up(row_units, 16));
  for (int key = 0; key < kGroup; ++key) {
    int const position = score_position<Isa>(key);
    uint32_t* const column = dst + position / kTile * row_units * kTile + position % kTile;
    for (int unit = 0; unit < row_units; ++unit) column[unit * kTile] = rows[key * row_stride + unit];
  }
}

// 2^x for x <= 0, exactly 1 at 0: for factors that are multiplied up over many steps. Relative error below 3e-7.
template <class Isa>
SAGE_INLINE typename Isa::F exp2_exact(typename Isa::F x) {
  auto const f = Isa::fraction(x);
  auto y = Isa::fma(Isa::set(1.8775767e-3f), f, Isa::set(8.9893397e-3f));
  y = Isa::fma(y, f, Isa::set(5.5826318e-2f));
  y = Isa::fma(y, f, Isa::set(2.4015361e-1f));
  y = Isa::fma(y, f, Isa::set(6.9315308e-1f));
  y = Isa::fma(y, f, Isa::set(1.f));
  return Isa::scale_by_power(y, x);
}

}  // namespace
}  // namespace sage::cpu
