#include "kernel_test/nvfp4_packer.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "common/numerics.h"
#include "common/nvfp4_format.h"
#include "kernel_test/problem.h"

namespace kernel_test {

using sage::kNvfp4Block;
using sage::QuantizeParams;

namespace {

Packed g_packed;

using Row = std::vector<double>;

struct Block {
  uint8_t codes[kNvfp4Block];
  uint8_t scale;
  double values[kNvfp4Block];
};

// The code of a number of e4m3 that is not negative.
uint8_t e4m3_code(double x) {
  if (std::isnan(x)) return 0x7f;
  if (x < 0x1p-6) return static_cast<uint8_t>(x * 0x1p9);
  int const exponent = std::ilogb(x);
  return static_cast<uint8_t>((exponent + 7) * 8 + (std::ldexp(x, -exponent) - 1.) * 8.);
}

Block to_nvfp4(double const* x) {
  Block y{};
  double amax = 0.;
  bool finite = true;
  for (int i = 0; i < kNvfp4Block; ++i) {
    amax = std::max(amax, std::fabs(x[i]));
    finite &= std::isfinite(x[i]);
  }
  double const scale = finite ? round_to_e4m3(amax / sage::kE2m1Max) : NAN;
  y.scale = e4m3_code(scale);
  for (int i = 0; i < kNvfp4Block; ++i) {
    double const value = finite && scale > 0. ? round_to_e2m1(x[i] / scale) : 0.;
    y.values[i] = value * scale;
    double const magnitude = std::fabs(value);
    double const code = magnitude < 2. ? magnitude * 2. : magnitude < 4. ? magnitude + 2. : magnitude / 2. + 4.;
    y.codes[i] = static_cast<uint8_t>(code) | (std::signbit(value) ? 8 : 0);
  }
  return y;
}

void put(char* byte, bool upper, uint8_t code) {
  *byte = static_cast<char>(upper ? (*byte & 0x0f) | code << 4 : (*byte & 0xf0) | code);
}

// What brings the largest magnitude below kNvfp4Max, and not below half of it.
double power_of_two(double amax) { return amax > 0. ? std::exp2(std::ceil(std::log2(amax / sage::kNvfp4Max))) : 1.; }

double finite_amax(Row const& x, double amax = 0.) {
  for (double y : x) {
    if (std::isfinite(y)) amax = std::max(amax, std::fabs(y));
  }
  return amax;
}

// The scale of a tile or channel: NaN if there is an infinity in it. A NaN is left to the scales of blocks.
float scale_with(double scale, bool infinite) { return infinite ? NAN : static_cast<float>(scale); }
bool has_infinity(Row const& x) {
  return std::any_of(x.begin(), x.end(), [](double y) { return std::isinf(y); });
}

template <int kHeadDim>
class Packer {
 public:
  explicit Packer(QuantizeParams const& params) : p_(params) {}

  void run() {
    g_packed = {kHeadDim, {}, {}};
    for (int b = 0; b < p_.batch; ++b) {
      sage::Sequence const s = p_.sequences[b];
      std::vector<Row> k_means;
      for (int h = 0; h < p_.num_heads_kv; ++h) {
        Row const k_mean = p_.smooth_k ? mean(p_.k, b, h, s.row_k, s.seqlen_k) : Row(kHeadDim);
        k_means.push_back(k_mean);
        PackedKeys keys;
        pack_k(b, h, s, k_mean, keys);
        pack_v(b, h, s, keys);
        g_packed.keys.push_back(std::move(keys));
      }
      for (int h = 0; h < p_.num_heads_q; ++h) {
        PackedQueries queries;
        pack_q(b, h, s, k_means[h / (p_.num_heads_q / p_.num_heads_kv)], queries);
        g_packed.queries.push_back(std::move(queries));
      }
    }
  }

 private:
  Row read(sage::TensorView const& x, int b, int head, int64_t row) const {
    uint16_t const* const data =
        static_cast<uint16_t const*>(x.data) + b * x.stride_batch + head * x.stride_head + row * x.stride_seq;
    Row y(kHeadDim);
    for (int d = 0; d < p_.head_dim; ++d) y[d] = to_float(data[d], p_.dtype);
    return y;
  }

  Row mean(sage::TensorView const& x, int b, int head, int64_t first, int64_t rows) const {
    Row y(kHeadDim);
    for (int64_t i = 0; i < rows; ++i) {
      Row const row = read(x, b, head, first + i);
      for (int d = 0; d < kHeadDim; ++d) y[d] += row[d] / static_cast<double>(rows);
    }
    return y;
  }

  Row rotated(Row const& x) const {
    if (!p_.hadamard) return x;
    Row y(kHeadDim);
    for (int i = 0; i < kHeadDim; ++i) {
      for (int d = 0; d < kHeadDim; ++d) {
        y[i] += (__builtin_popcount(i & d) % 2 ? -x[d] : x[d]) * sage::hadamard_sign(d);
      }
      y[i] *= sage::kHadamardFactor<kHeadDim>;
    }
    return y;
  }

  static Row difference(Row x, Row const& y) {
    for (size_t i = 0; i < x.size(); ++i) x[i] -= y[i];
    return x;
  }

  // Writes a row of a tile, and appends its numbers times `factor`. `offset` and `scale_offset` are of its channels.
  // Returns what it leaves.
  template <class Offset, class ScaleOffset>
  static Row put_row(char* tile, Row const& x, double factor, Row& numbers, Offset offset, ScaleOffset scale_offset) {
    Row rest = x;
    for (int d = 0; d < kHeadDim; d += kNvfp4Block) {
      Block const block = to_nvfp4(&x[d]);
      tile[scale_offset(d)] = static_cast<char>(block.scale);
      for (int i = 0; i < kNvfp4Block; ++i) {
        put(tile + offset(d + i), i % 2, block.codes[i]);
        rest[d + i] -= block.values[i];
        numbers.push_back(block.values[i] * factor);
      }
    }
    return rest;
  }

  void pack_q(int b, int head, sage::Sequence const& s, Row const& k_mean, PackedQueries& y) {
    double const sign = std::signbit(p_.softmax_scale) ? -1. : 1.;
    for (int64_t first = 0; first < s.seqlen_q; first += sage::kQTileRows) {
      int64_t const rows = std::min<int64_t>(sage::kQTileRows, s.seqlen_q - first);
      int64_t const tile = p_.first_q_tile(b, head, s) + first / sage::kQTileRows;
      Row tile_mean = p_.smooth_q ? mean(p_.q, b, head, s.row_q + first, rows) : Row(kHeadDim);
      std::vector<Row> x(sage::kQTileRows, Row(kHeadDim));
      for (int64_t i = 0; i < rows; ++i) {
        Row const q = read(p_.q, b, head, s.row_q + first + i);
        add_shift(b, head, s, first + i, q, k_mean, y);
        x[i] = rotated(difference(q, tile_mean));
      }
      tile_mean = rotated(tile_mean);
      double amax = finite_amax(tile_mean);
      bool infinite = false;
      for (Row const& row : x) {
        amax = finite_amax(row, amax);
        infinite |= has_infinity(row);
      }
      double const g = power_of_two(amax);
      float const scale = scale_with(g, infinite) * std::fabs(p_.softmax_scale) * sage::kLog2e;
      p_.q_scale[tile * sage::kQScalesPerTile] = scale;
      auto const scaled = [&](Row row) {
        for (double& v : row) v *= sign / g;
        return row;
      };
      char* const codes = p_.q_out + tile * sage::nvfp4_bytes(sage::kQTileRows, kHeadDim);
      Row numbers, mean_numbers(kHeadDim);
      for (int i = 0; i < sage::kQTileRows; ++i) {
        put_row(
            codes, scaled(x[i]), scale, numbers, [&](int d) { return sage::q_nvfp4_offset<kHeadDim>(i, d); },
            [&](int d) { return sage::q_nvfp4_scale_offset<kHeadDim>(i, d); });
      }
      if (p_.smooth_q) {
        char* const digits = p_.q_mean + tile * sage::q_mean_nvfp4_bytes(kHeadDim);
        Row rest = scaled(tile_mean);
        for (int i = 0; i < sage::kQMeanDigits; ++i) {
          Row digit;
          rest = put_row(
              digits, rest, scale, digit, [&](int d) { return sage::q_mean_nvfp4_offset<kHeadDim>(i, d); },
              [&](int d) { return sage::q_mean_nvfp4_scale_offset<kHeadDim>(i, d); });
          for (int d = 0; d < kHeadDim; ++d) mean_numbers[d] += digit[d];
        }
      }
      y.q.insert(y.q.end(), numbers.begin(), numbers.begin() + rows * kHeadDim);
      for (int64_t i = 0; i < rows; ++i) y.mean.insert(y.mean.end(), mean_numbers.begin(), mean_numbers.end());
    }
  }

  void add_shift(int b, int head, sage::Sequence const& s, int64_t row, Row const& q, Row const& k_mean,
                 PackedQueries& y) {
    double shift = 0.;
    for (int d = 0; d < kHeadDim; ++d) shift += q[d] * k_mean[d] * p_.softmax_scale;
    y.lse_shift.push_back(shift);
    if (!p_.lse_shift) return;
    bool const packed = p_.sequences.cu_seqlens_q;
    int64_t const index =
        packed ? head * p_.total_q + s.row_q + row : (int64_t{b} * p_.num_heads_q + head) * s.seqlen_q + row;
    p_.lse_shift[index] = static_cast<float>(shift);
  }

  void pack_k(int b, int head, sage::Sequence const& s, Row const& k_mean, PackedKeys& y) {
    int const plane = sage::nvfp4_bytes(sage::kKTileRows, kHeadDim);
    for (int64_t first = 0; first < s.seqlen_k; first += sage::kKTileRows) {
      int64_t const rows = std::min<int64_t>(sage::kKTileRows, s.seqlen_k - first);
      int64_t const tile = p_.first_k_tile(b, head, s) + first / sage::kKTileRows;
      std::vector<Row> x(sage::kKTileRows, Row(kHeadDim));
      double amax = 0.;
      bool infinite = false;
      for (int64_t i = 0; i < rows; ++i) {
        x[i] = rotated(difference(read(p_.k, b, head, s.row_k + first + i), k_mean));
        amax = finite_amax(x[i], amax);
        infinite |= has_infinity(x[i]);
      }
      double const g = power_of_two(amax);
      float const scale = scale_with(g, infinite);
      std::fill_n(p_.k_scale + tile * sage::kKScalesPerTile, sage::kKScalesPerTile, scale);
      char* const codes = p_.k_out + tile * plane * (p_.smooth_q ? 2 : 1);
      Row numbers, rests;
      for (int i = 0; i < sage::kKTileRows; ++i) {
        auto const offset = [&](int d) { return sage::k_nvfp4_offset<kHeadDim>(i, d); };
        auto const scale_offset = [&](int d) { return sage::k_nvfp4_scale_offset<kHeadDim>(i, d); };
        for (double& v : x[i]) v /= g;
        Row const rest = put_row(codes, x[i], scale, numbers, offset, scale_offset);
        if (p_.smooth_q) put_row(codes + plane, rest, scale, rests, offset, scale_offset);
      }
      rests.resize(numbers.size());
      for (int64_t i = 0; i < rows * kHeadDim; ++i) {
        y.k.push_back(numbers[i]);
        y.k_corrected.push_back(numbers[i] + rests[i]);
      }
    }
  }

  void pack_v(int b, int head, sage::Sequence const& s, PackedKeys& y) {
    constexpr int kRows = sage::kKTileRows;
    bool const nvfp4 = p_.v_format == sage::VFormat::kNvfp4;
    int const bytes = nvfp4 ? sage::nvfp4_bytes(kRows, kHeadDim) : kRows * kHeadDim;
    int64_t const tiles = sage::ceil_div(s.seqlen_k, kRows), of_head = int64_t{b} * p_.num_heads_kv + head;
    char* const out = static_cast<char*>(p_.v_out) + p_.first_k_tile(b, head, s) * bytes;
    bool const smooth = p_.v_mean;
    y.v_mean = smooth ? mean(p_.v, b, head, s.row_k, s.seqlen_k) : Row(kHeadDim);
    y.v.resize(s.seqlen_k * kHeadDim);
    std::vector<Row> rows;
    for (int64_t j = 0; j < s.seqlen_k; ++j) rows.push_back(difference(read(p_.v, b, head, s.row_k + j), y.v_mean));
    for (int d = 0; d < kHeadDim; ++d) {
      Row x(tiles * kRows);
      for (int64_t j = 0; j < s.seqlen_k; ++j) x[j] = rows[j][d];
      double const amax = finite_amax(x);
      float const quantum = static_cast<float>(nvfp4 ? power_of_two(amax) : amax > 0. ? amax / p_.v_max : 1.);
      float const scale = scale_with(quantum, has_infinity(x));
      if (tiles > 0) p_.v_scale[of_head * kHeadDim + d] = scale;
      if (tiles > 0 && smooth) p_.v_mean[of_head * kHeadDim + d] = static_cast<float>(y.v_mean[d]);
      for (double& v : x) v /= quantum;
      for (int64_t j = 0; j < tiles * kRows; j += kNvfp4Block) {
        Block const block = to_nvfp4(&x[j]);
        char* const tile = out + j / kRows * bytes;
        if (nvfp4) tile[sage::v_nvfp4_scale_offset<kHeadDim>(j % kRows, d)] = static_cast<char>(block.scale);
        for (int i = 0; i < kNvfp4Block; ++i) {
          int const key = static_cast<int>(j % kRows) + i;
          double value = block.values[i];
          if (nvfp4) {
            put(tile + sage::v_nvfp4_offset(key, d), i % 2, block.codes[i]);
          } else {
            value = std::isfinite(x[j + i]) ? round_to_e4m3(x[j + i]) : NAN;
            int const sign = value < 0. ? 0x80 : 0;
            tile[sage::v8_block_scaled_offset<kHeadDim>(key, d)] =
                static_cast<char>(e4m3_code(std::fabs(value)) | sign);
          }
          if (j + i < s.seqlen_k) y.v[(j + i) * kHeadDim + d] = value * scale;
        }
      }
    }
  }

  QuantizeParams const& p_;
};

template <int kHeadDim>
sage::Status pack(QuantizeParams const& p, sage::Stream) {
  Packer<kHeadDim>(p).run();
  return {};
}

sage::Status do_nothing(QuantizeParams const&, sage::Stream) { return {}; }

}  // namespace

sage::arch::CompiledKernel<QuantizeParams> const no_stats{"no_stats", 0, do_nothing},
    packer_d64{"packer_d64", 0, pack<64>}, packer_d128{"packer_d128", 0, pack<128>};

Packed const& last_packed() { return g_packed; }

}  // namespace kernel_test
