#include "quantizer_test/check.h"

#include <cuda_fp8.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "arch/convert.h"
#include "common/numerics.h"
#include "common/quant_format.h"
#include "quantizer_test/reference.h"

namespace quantizer_test {

using namespace sage;

namespace {

int sign_extend4(int nibble) { return (nibble & 15) - ((nibble & 8) << 1); }
int int4_of(char const* bytes, int offset, int d) {
  return sign_extend4(static_cast<unsigned char>(bytes[offset]) >> d % 2 * 4);
}

// In the images that wgmma reads, chunk c (16 bytes) of row r takes the place c ^ r % 8 in the 128-byte mode and
// c ^ r / 2 % 4 in the 64-byte mode (PTX ISA, section 9.7.15.5.1).
int image_offset(int row_bytes, int row, int byte) {
  int const exchanged = row_bytes == 128 ? row % 8 : row / 2 % 4;
  return row * row_bytes + ((byte / 16) ^ exchanged) * 16 + byte % 16;
}

class Check : Reference {
 public:
  explicit Check(Problem const& x)
      : Reference(x),
        int4(x.c.qk == QkFormat::kInt4),
        wgmma(x.c.order == OperandOrder::kWgmma),
        limit(int4 ? 7. : 127.) {}

  void run() {
    for (int b = 0; b < x.batch(); ++b) {
      for (int h = 0; h < x.c.num_heads_q; ++h) check_q(b, h);
      for (int h = 0; h < x.c.num_heads_kv; ++h) {
        check_k(b, h);
        if (x.v_bytes()) check_v(b, h);
      }
    }
    untouched("q_out", x.q_out, q_tile_written, q_tile_bytes(int4 ? 4 : 8, dim));
    untouched("q_scale", x.q_scale, q_tile_written, kQScalesPerTile);
    untouched("q_mean", x.q_mean, q_tile_written, 2 * dim);
    untouched("q_mean_scale", x.q_mean_scale, q_tile_written, 1);
    untouched("k_out", x.k_out, k_tile_written, k_tile_bytes(dim), int4 && !x.c.smooth_q ? kKTileRows * dim / 2 : 0);
    untouched("k_scale", x.k_scale, k_tile_written, kKScalesPerTile);
    untouched("v_out", x.v_out, k_tile_written, kKTileRows * dim * x.v_bytes());
    check_fold_slots();
  }

 private:
  void expect_code(char const* what, int row, int d, double got, double value, double inverse, double slack,
                   double step = 1.) {
    double const expected = std::isfinite(inverse) ? value * inverse : 0.;
    double const allowed = (.5 + kFloat * slack * std::fabs(inverse)) * step;
    bool const right = std::isfinite(inverse) ? std::fabs(got - expected) <= allowed : got == 0.;
    if (!right) fail("%s[%d, %d] is %g, expected %g", what, row, d, got, expected);
  }

  void check_q(int b, int h) {
    auto const element = [&](int64_t i, int d) { return x.q(b, h, i, d); };
    std::vector<double> const k_mean_of = k_mean(b, h / (x.c.num_heads_q / x.c.num_heads_kv));
    double const log2_scale = std::fabs(x.c.softmax_scale) * kLog2e, sign = x.c.softmax_scale < 0 ? -1. : 1.;
    for (int64_t first = 0; first < x.rows_q(b); first += kQTileRows) {
      int64_t const tile = x.q_tile(b, h, first / kQTileRows);
      q_tile_written[tile] = true;
      Rows rows = rows_of(element, first, x.rows_q(b), kQTileRows);
      int const existing = static_cast<int>(std::min<int64_t>(kQTileRows, x.rows_q(b) - first));
      for (int i = 0; i < existing && x.p.lse_shift; ++i) check_lse(b, h, first + i, rows[i], k_mean_of);
      std::vector<double> mean = q_mean(rows, existing);
      double const slack = transform(rows, existing, mean);
      if (x.c.smooth_q) check_q_mean(tile, mean, sign, log2_scale, slack);

      int const shared = x.c.granularity == QkGranularity::kThread ? 1
                         : x.c.granularity == QkGranularity::kWarp ? 8
                                                                   : kQScalesPerTile;
      std::vector<double> amax(kQScalesPerTile);
      for (int i = 0; i < kQTileRows; ++i) {
        double& of_group = amax[q_scale_index(i) / shared * shared];
        double const of_row = greatest(rows[i]);
        of_group = std::isnan(of_row) || std::isnan(of_group) ? NAN : std::fmax(of_group, of_row);
      }
      for (int i = 0; i < kQScalesPerTile; ++i) {
        expect_scale("q_scale", tile * kQScalesPerTile + i, x.q_scale[tile * kQScalesPerTile + i],
                     amax[i / shared * shared], limit / log2_scale, slack);
      }
      char const* const out = x.q_out.data() + tile * q_tile_bytes(int4 ? 4 : 8, dim);
      for (int i = 0; i < kQTileRows; ++i) {
        double const largest = amax[q_scale_index(i) / shared * shared];
        for (int d = 0; d < dim; ++d) {
          int const code = int4    ? int4_of(out, of_dim([&](auto n) { return q_int4_offset<n>(i, d); }), d)
                           : wgmma ? static_cast<int8_t>(out[wgmma_place(i, d)])
                                   : static_cast<int8_t>(out[of_dim([&](auto n) { return q_int8_offset<n>(i, d); })]);
          expect_code("q", i, d, code, rows[i][d], inverse(largest, limit) * sign, slack);
        }
      }
    }
  }

  void check_q_mean(int64_t tile, std::vector<double> const& mean, double sign, double log2_scale, double slack) {
    double const amax = greatest(mean);
    expect_scale("q_mean_scale", tile, x.q_mean_scale[tile], amax, kQMeanLimit / log2_scale, slack);
    char const* const out = x.q_mean.data() + tile * 2 * dim;
    for (int d = 0; d < dim; ++d) {
      int code = 0;
      for (int digit = 3; digit >= 0; --digit) code = code * 16 + int4_of(out, q_mean_offset(digit, d), d);
      expect_code("q_mean", 0, d, code, mean[d], inverse(amax, kQMeanLimit) * sign, slack);
    }
  }

  void check_k(int b, int h) {
    auto const element = [&](int64_t i, int d) { return x.k(b, h, i, d); };
    std::vector<double> const mean_of = k_mean(b, h);
    for (int64_t first = 0; first < x.rows_k(b); first += kKTileRows) {
      int64_t const tile = x.k_tile(b, h, first / kKTileRows);
      k_tile_written[tile] = true;
      Rows rows = rows_of(element, first, x.rows_k(b), kKTileRows);
      std::vector<double> mean = mean_of;
      double const slack = transform(rows, static_cast<int>(std::min<int64_t>(kKTileRows, x.rows_k(b) - first)), mean);
      int const shared = x.c.granularity == QkGranularity::kThread ? 1 : kKScalesPerTile;
      std::vector<double> amax(kKScalesPerTile);
      for (int i = 0; i < kKTileRows; ++i) {
        double& of_group = amax[k_scale_index(i) / shared * shared];
        double const of_row = greatest(rows[i]);
        of_group = std::isnan(of_row) || std::isnan(of_group) ? NAN : std::fmax(of_group, of_row);
      }
      for (int i = 0; i < kKScalesPerTile; ++i) {
        expect_scale("k_scale", tile * kKScalesPerTile + i, x.k_scale[tile * kKScalesPerTile + i],
                     amax[i / shared * shared], limit, slack);
      }
      char const* const out = x.k_out.data() + tile * k_tile_bytes(dim);
      for (int i = 0; i < kKTileRows; ++i) {
        double const factor = inverse(amax[k_scale_index(i) / shared * shared], limit);
        for (int d = 0; d < dim; ++d) {
          int const code = int4 ? int4_of(out, k_int4_offset(i, d), d)
                                : static_cast<int8_t>(out[wgmma ? wgmma_place(i, d) : k_int8_offset(i, d)]);
          expect_code("k", i, d, code, rows[i][d], factor, slack);
          if (!int4 || !x.c.smooth_q) continue;
          int const rest = int4_of(out + kKTileRows * dim / 2, k_int4_offset(i, d), d);
          bool const cut = rest == 7;  // 8 does not exist
          expect_code("k and its rest", i, d, code + rest / 16., rows[i][d], factor, slack * 16.,
                      cut ? 1 / 8. : 1 / 16.);
        }
      }
    }
  }

  void check_v(int b, int h) {
    auto const element = [&](int64_t i, int d) { return x.v(b, h, i, d); };
    int64_t const channel = (int64_t{b} * x.c.num_heads_kv + h) * dim;
    std::vector<double> const mean_of = mean(element, x.c.smooth_v ? x.rows_k(b) : 0);
    std::vector<double> amax(dim), slack(dim);
    if (x.scales_v()) v_amax(b, h, mean_of, amax, slack);
    for (int d = 0; d < dim && x.scales_v(); ++d) {
      if (x.c.v_format == VFormat::kFloat16) {
        amax[d] = std::isfinite(amax[d]) ? std::exp2(std::floor(std::log2(std::fmax(amax[d], kAmaxFloor))) + 1) : NAN;
        amax[d] = std::fmin(amax[d], std::isnan(amax[d]) ? NAN : std::exp2(127));
      }
      double const v_max = x.c.v_format == VFormat::kFloat16 ? 1. : x.c.v_max;
      expect_scale("v_scale", channel + d, x.v_scale[channel + d], amax[d], v_max, slack[d]);
    }
    for (int64_t first = 0; first < x.rows_k(b); first += kKTileRows) {
      int64_t const tile = x.k_tile(b, h, first / kKTileRows);
      k_tile_written[tile] = true;
      char const* const out = x.v_out.data() + tile * kKTileRows * dim * x.v_bytes();
      for (int i = 0; i < kKTileRows; ++i) {
        for (int d = 0; d < dim; ++d) {
          bool const exists = first + i < x.rows_k(b) && d < x.head_dim();
          double const y = exists ? element(first + i, d) : 0.;
          check_v_element(out, i, d, exists, y, exists ? y - mean_of[d] : 0., amax[d], slack[d]);
        }
      }
    }
  }

  void check_v_element(char const* out, int i, int d, bool exists, double y, double value, double amax, double slack) {
    if (x.v_bytes() == 2) {
      uint16_t bits;
      std::memcpy(&bits, out + (i * dim + d) * 2, 2);
      if (x.c.v_format == VFormat::kCopy) {
        if (bits != from_float(static_cast<float>(y), x.c.dtype) && !std::isnan(y))
          fail("v[%d, %d] is %#x", i, d, bits);
        return;
      }
      double const got = to_float(bits, DType::kFloat16), expected = std::isnan(amax) ? 0. : y / amax;
      if (!(std::fabs(got - expected) <= std::fabs(expected) / 2048 + 0x1p-25) && !std::isnan(amax)) {
        fail("v[%d, %d] is %g, expected %g", i, d, got, expected);
      }
      return;
    }
    int const code = static_cast<unsigned char>(out[wgmma ? v_wgmma_place(i, d) : v8_offset(i, d)]);
    double const factor = inverse(amax, x.c.v_max);
    if (x.c.v_format == VFormat::kInt8) {
      expect_code("v", i, d, static_cast<int8_t>(code), value, factor, slack);
    } else {
      double const expected = std::isfinite(factor) ? std::fabs(value * factor) : 0.;
      double const step = expected < 0x1p-6 ? 0x1p-9 : std::exp2(std::floor(std::log2(expected)) - 3);
      expect_code("v", i, d, e4m3_to_float(code), value, factor, slack / step, step);
    }
    if (!exists && code != 0) fail("v[%d, %d], which does not exist, is %#x", i, d, code);
  }

  static double inverse(double amax, double of) { return std::isfinite(amax) ? of / std::fmax(amax, kAmaxFloor) : NAN; }

  // Of Q and K: images of 64 rows and 64 or 128 channels, the channels' first.
  int wgmma_place(int row, int d) const {
    int const channels = std::min(dim, 128), image = row / 64 * (dim / channels) + d / channels;
    return image * 64 * channels + image_offset(channels, row % 64, d % channels);
  }
  // Of V: a row per channel. What the accumulators of Q K^T have of 16 keys in lane t of four is 2t, 2t + 1, 2t + 8 and
  // 2t + 9, and what an A operand has there of 16 bytes is 4t .. 4t + 3.
  static int v_wgmma_place(int key, int d) {
    int const lane = key % 8 / 2, of_lane = key % 2 + key % 16 / 8 * 2;
    return image_offset(64, d, key / 16 * 16 + lane * 4 + of_lane);
  }

  template <class F>
  int of_dim(F const& f) const {
    return dim == 64    ? f(std::integral_constant<int, 64>{})
           : dim == 128 ? f(std::integral_constant<int, 128>{})
                        : f(std::integral_constant<int, 256>{});
  }

  bool const int4, wgmma;
  double const limit;
};

}  // namespace

std::string check(Problem const& problem) {
  return what_fails([&] { Check(problem).run(); });
}

std::string check_e4m3() {
  auto const wrong = [](float x) {
    int const expected = __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3), got = arch::round_to_e4m3(x);
    return std::isnan(x) ? (got & 0x7f) != 0x7f : got != expected;
  };
  char text[100];
  auto const report = [&](float x) {
    std::snprintf(text, sizeof text, "%a becomes %#x", x, arch::round_to_e4m3(x));
    return std::string(text);
  };
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    for (DType dtype : {DType::kFloat16, DType::kBFloat16}) {
      float const x = to_float(static_cast<uint16_t>(bits), dtype);
      if (wrong(x)) return report(x);
    }
  }
  for (uint64_t bits = 0; bits >> 32 == 0; bits += 1021) {
    float const x = arch::as_float(static_cast<uint32_t>(bits));
    if (wrong(x)) return report(x);
  }
  for (int code = 0; code < 0x7e; ++code) {  // around the ties
    float const tie = (e4m3_to_float(code) + e4m3_to_float(code + 1)) / 2;
    for (float x : {std::nextafter(tie, 0.f), tie, std::nextafter(tie, 1000.f)}) {
      if (wrong(x) || wrong(-x)) return report(x);
    }
  }
  return "";
}

}  // namespace quantizer_test
