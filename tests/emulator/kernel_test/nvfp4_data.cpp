// What the NVFP4 kernels are tested on.
#include <algorithm>
#include <cmath>

#include "common/nvfp4_format.h"
#include "kernel_test/problem.h"

namespace kernel_test {

// 0, .5, 1, 1.5, 2, 3, 4, 6.
double round_to_e2m1(double x) {
  double const magnitude = std::fabs(x), step = magnitude < 2. ? .5 : magnitude < 4. ? 1. : 2.;
  return std::copysign(std::min(std::nearbyint(magnitude / step) * step, 6.), x);
}

// A power of two that differs between neighbouring blocks, rows and heads: a wrong scale shows.
static float block_scale(int64_t row, int64_t block, int head) {
  return std::exp2(-static_cast<float>((row * 3 + block * 5 + (row / 8) % 3 + head) % 4));
}

// Of neighbouring tiles, heads and sequences.
static float tile_scale(int b, int head, int64_t tile) {
  return std::exp2(static_cast<float>((tile + head + 2 * b) % 3));
}

// The root of the mean square of Q and of K, by the scales above.
constexpr double kMagnitude = 1.52;
constexpr float kStepQ = 64.f, kStepK = .125f;

// Normal numbers with these scales, so that no two blocks have the same range.
void Problem::make_block_scaled() {
  using sage::kNvfp4Block;
  int const dim = desc.head_dim;
  auto const element = [&](float x) { return from_float(x, desc.dtype); };
  auto const spoiled = [&](Operand operand, uint16_t* row) {
    if (case_.with_nan == operand) row[5] = element(NAN);
    if (case_.with_infinity == operand) row[5] = element(-INFINITY);
  };
  float const q_mean = case_.q_mean == QMean::kNone ? 0.f : case_.q_mean == QMean::kLarge ? 24.f : 3.f;
  int const exponent = desc.dtype == sage::DType::kBFloat16 ? case_.v_exponent : 0;

  for (int b = 0; b < desc.batch; ++b) {
    for (int h = 0; h < desc.num_heads_q; ++h) {
      std::vector<float> mean(dim);
      for (int64_t i = 0; i < seqlen_q(b); ++i) {
        int64_t const tile = i / sage::kQTileRows;
        if (i % sage::kQTileRows == 0) {
          for (float& x : mean) x = q_mean * normal() * tile_scale(b, h, tile + 1);
        }
        for (int d = 0; d < dim; ++d) {
          float const x = data_ == Data::kExact ? normal() * block_scale(i, d / kNvfp4Block, h) : 0.f;
          q_row(b, h, i)[d] = element(x * tile_scale(b, h, tile) + mean[d]);
        }
        if (!case_.steps.empty()) q_row(b, h, i)[0] = element(kStepQ);
      }
    }
    for (int h = 0; h < desc.num_heads_kv; ++h) {
      for (int64_t j = 0; j < seqlen_k(b); ++j) {
        int64_t const tile = j / sage::kKTileRows;
        for (int d = 0; d < dim; ++d) {
          float const bias = static_cast<float>((d + h) % 2 ? -case_.k_bias : case_.k_bias) / 16.f;
          float const x = data_ == Data::kZero ? 0.f : normal() * block_scale(j, d / kNvfp4Block, h);
          k_row(b, h, j)[d] = element(x * tile_scale(b, h, tile) + bias);
          float const v = normal() * block_scale(d, j / kNvfp4Block, h) + static_cast<float>(d % 3);
          float const largest = case_.v_data == VData::kLargest ? (d % 2 ? -2.f : 2.f) : v;
          v_row(b, h, j)[d] = element(d == 3 ? 0.f : std::ldexp(largest, exponent - (d + h + b) % 5));
        }
        if (!case_.steps.empty()) k_row(b, h, j)[0] = element(static_cast<float>(case_.steps[tile]) * kStepK);
      }
    }
  }
  if (desc.seqlen_q > 20) spoiled(Operand::kQ, q_row(0, 0, 20));
  if (desc.seqlen_k > 77) spoiled(Operand::kK, k_row(0, 0, 77));
  if (desc.seqlen_k > 77) spoiled(Operand::kV, v_row(0, 0, 77));
  softmax_scale = static_cast<float>(case_.scores / (kMagnitude * kMagnitude * std::sqrt(desc.head_dim)));
}

}  // namespace kernel_test
