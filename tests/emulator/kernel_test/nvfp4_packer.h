// A quantizer of NVFP4 operands in plain C++ for the tests of the attention kernels, which keeps what it wrote as
// numbers. It writes nothing that the kernels must not look at.
#pragma once
#include <vector>

#include "arch/launch.h"
#include "quantize/params.h"

namespace kernel_test {

// Decoded operands. Rows have the padded head_dim; blocks with the scale NaN are NaN.
struct PackedQueries {
  std::vector<double> q;     // base-2 scores are q . k + mean . k_corrected
  std::vector<double> mean;  // of the tile of the row; zeros unless smooth_q
  std::vector<double> lse_shift;
};
struct PackedKeys {
  std::vector<double> k, k_corrected;  // the first plane, and the sum of both
  std::vector<double> v, v_mean;       // v without its mean
};
struct Packed {
  int head_dim;                        // padded
  std::vector<PackedQueries> queries;  // [batch][num_heads_q]
  std::vector<PackedKeys> keys;        // [batch][num_heads_kv]
};

// In the place of kv_stats and the quantizer.
extern sage::arch::CompiledKernel<sage::QuantizeParams> const no_stats, packer_d64, packer_d128;

// Of the last launch of a packer.
Packed const& last_packed();

}  // namespace kernel_test
