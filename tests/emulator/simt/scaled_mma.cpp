#include "simt/scaled_mma.h"

#include "simt/error.h"
#include "simt/stats.h"

namespace simt {
namespace {

constexpr int kLanes = 32, kQuad = 4, kMaxRows = 16, kMaxK = 64, kMaxBlocks = 4;

// A byte container of an e2m1 holds it in bits 2 to 5, one of six bits in the low ones.
void decode_containers(Element element, int container_bits, void const* registers, int count, uint16_t const* index,
                       float* out) {
  if (container_bits == 4 || element_bits(element) != 4) {
    decode_packed(element, registers, count, index, out);
    return;
  }
  auto const* bytes = static_cast<uint8_t const*>(registers);
  for (int v = 0; v < count; ++v) out[index[v]] = decode(element, bytes[v] >> 2 & 15);
}

}  // namespace

std::vector<uint16_t> scale_table(std::vector<uint16_t> const& element_table, int rows, int K, int vector) {
  int const num_blocks = K / vector;
  std::vector<uint16_t> table(kLanes * num_blocks);
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int k = 0; k < K; ++k) {
      int const at = element_table[lane * K + k], block = k / vector;
      uint16_t const index = static_cast<uint16_t>(block * rows + at % rows);
      if (k % vector == 0) table[lane * num_blocks + block] = index;
      if (at / rows / vector != block || table[lane * num_blocks + block] != index) {
        fail("block-scaled mma: lane %d has a scale of block %d for element %d", lane, block, at);
      }
    }
  }
  return table;
}

void scaled_mma(ScaledMma const& mma, void** slots) {
  ++t_stats.mma;
  WarpMma const& shape = mma.mma;
  int const M = shape.M, N = shape.N, K = shape.K;
  int const num_blocks = K / mma.vector;
  if (M > kMaxRows || N > kMaxRows || K > kMaxK || num_blocks > kMaxBlocks) {
    fail("block-scaled mma: %d x %d x %d with blocks of %d is too large", M, N, K, mma.vector);
  }
  alignas(64) float a[kMaxRows * kMaxK], b[kMaxRows * kMaxK], dot[kMaxRows * kMaxRows];
  float sfa[kMaxBlocks * kMaxRows], sfb[kMaxBlocks * kMaxRows];
  double sum[kMaxRows * kMaxRows] = {};
  int const a_count = static_cast<int>(shape.a_index.size()) / kLanes;
  int const b_count = static_cast<int>(shape.b_index.size()) / kLanes;
  int const c_count = static_cast<int>(shape.c_index.size()) / kLanes;
  for (int lane = 0; lane < kLanes; ++lane) {
    auto const& registers = *static_cast<ScaledMmaRegisters const*>(slots[lane]);
    decode_containers(shape.a, mma.container_bits, registers.mma.a, a_count, &shape.a_index[lane * a_count], a);
    decode_containers(shape.b, mma.container_bits, registers.mma.b, b_count, &shape.b_index[lane * b_count], b);
    int const first = lane * num_blocks;
    if (lane % kQuad < 2) decode_packed(mma.scale, registers.sfa, num_blocks, &mma.sfa_index[first], sfa);
    if (lane % kQuad == mma.thread_b) decode_packed(mma.scale, registers.sfb, num_blocks, &mma.sfb_index[first], sfb);
  }
  // Of e2m1 a block's sum is exact in float, and all of them with the scales in double.
  for (int block = 0; block < num_blocks; ++block) {
    int const k = block * mma.vector;
    multiply(M, N, mma.vector, a + k * M, b + k * N, dot);
    for (int n = 0; n < N; ++n) {
      double const scale_b = sfb[block * N + n];
      for (int m = 0; m < M; ++m) sum[n * M + m] += dot[n * M + m] * (sfa[block * M + m] * scale_b);
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    auto const& registers = static_cast<ScaledMmaRegisters const*>(slots[lane])->mma;
    auto const* const c = static_cast<float const*>(registers.c);
    auto* const d = static_cast<float*>(registers.d);
    for (int v = 0; v < c_count; ++v) d[v] = static_cast<float>(c[v] + sum[shape.c_index[lane * c_count + v]]);
  }
}

}  // namespace simt
