#include "quantizer_test/nvfp4_check.h"

#include <array>
#include <cmath>
#include <functional>

#include "arch/convert.h"
#include "common/numerics.h"
#include "common/quant_format.h"
#include "quantizer_test/reference.h"

namespace quantizer_test {

using namespace sage;

namespace {

constexpr double kE2m1[8] = {0., .5, 1., 1.5, 2., 3., 4., 6.};
double e2m1(int code) { return code < 8 ? kE2m1[code] : -kE2m1[code - 8]; }

// Four exponent and three fraction bits, bias 7; 127 is NaN.
double ue4m3(int code) {
  if (code == 127) return NAN;
  return code < 8 ? std::ldexp(code, -9) : std::ldexp(8 + code % 8, code / 8 - 10);
}

constexpr double kRelative = 1e-6;  // of one float32 operation or two

// Whether no code is nearer to `value`, which is off by `tolerance` at most.
bool nearest(double (*decode)(int), int codes, int code, double value, double tolerance) {
  double best = INFINITY;
  for (int i = 0; i < codes; ++i) best = std::fmin(best, std::fabs(decode(i) - value));
  return std::fabs(decode(code) - value) <= best + 2. * (tolerance + kRelative * std::fabs(value));
}

// Values in blocks of 16 along a row.
struct Image {
  Image(int rows, int columns)
      : codes(rows, std::vector<int>(columns, -1)), scales(rows, std::vector<int>(columns / 16, -1)) {}
  std::vector<std::vector<int>> codes, scales;
};

// Takes values of four bits and bytes one after another.
class Reader {
 public:
  explicit Reader(char const* data) : data_(reinterpret_cast<unsigned char const*>(data)) {}
  int value() {
    int const code = data_[next_ / 2] >> next_ % 2 * 4 & 15;
    ++next_;
    return code;
  }
  int byte() {
    next_ += 2;
    return data_[next_ / 2 - 1];
  }

 private:
  unsigned char const* data_;
  int64_t next_ = 0;  // half a byte each
};

class Check : Reference {
 public:
  explicit Check(Problem const& x)
      : Reference(x),
        fp8_v(x.c.v_format == VFormat::kFp8E4m3),
        q_tile(128 * dim / 2 + 128 * dim / 16),
        k_plane(64 * dim / 2 + 64 * dim / 16),
        k_tile(x.c.smooth_q ? 2 * k_plane : k_plane),
        v_tile(fp8_v ? 64 * dim : k_plane),
        q_mean_tile(4 * dim / 2 + 4 * dim / 16) {}

  void run() {
    for (int b = 0; b < x.batch(); ++b) {
      for (int h = 0; h < x.c.num_heads_q; ++h) check_q(b, h);
      for (int h = 0; h < x.c.num_heads_kv; ++h) {
        check_k(b, h);
        check_v(b, h);
      }
    }
    untouched("q_out", x.q_out, q_tile_written, q_tile);
    untouched("q_scale", x.q_scale, q_tile_written, kQScalesPerTile, kQScalesPerTile - 1);
    untouched("q_mean", x.q_mean, q_tile_written, q_mean_tile);
    untouched("k_out", x.k_out, k_tile_written, k_tile);
    untouched("k_scale", x.k_scale, k_tile_written, kKScalesPerTile);
    untouched("v_out", x.v_out, k_tile_written, v_tile);
    check_fold_slots();
  }

 private:
  // Lane 4 g + q of mma.m16n8k64: A registers r + 2 h have row g + 8 r, B registers h column g, channels 32 h + 8 q on;
  // C registers have columns 2 q and 2 q + 1.
  Image q_image(char const* data) const {
    Image y(128, dim);
    Reader read(data);
    for (int m = 0; m < 128; m += 16) {
      for (int k = 0; k < dim; k += 64) {
        for (int lane = 0; lane < 32; ++lane) {
          for (int h = 0; h < 2; ++h) {
            for (int r = 0; r < 2; ++r) read_register(read, y.codes[m + lane / 4 + 8 * r], k + 32 * h, lane);
          }
        }
      }
    }
    for (int m = 0; m < 128; m += 16) {
      for (int k = 0; k < dim; k += 64) {
        for (int row = 0; row < 16; ++row) read_scales(read, y.scales[m + row], k);
      }
    }
    return y;
  }

  static void read_register(Reader& read, std::vector<int>& codes, int first, int lane) {
    for (int i = 0; i < 8; ++i) codes[first + lane % 4 * 8 + i] = read.value();
  }

  static void read_scales(Reader& read, std::vector<int>& scales, int k) {
    for (int i = 0; i < 4; ++i) scales[k / 16 + i] = read.byte();
  }

  // Rows are digits, which are columns of B fragments.
  Image q_mean_image(char const* data) const {
    Image y(4, dim);
    Reader read(data);
    for (int k = 0; k < dim; k += 64) {
      for (int lane = 0; lane < 16; ++lane) {
        for (int h = 0; h < 2; ++h) read_register(read, y.codes[lane / 4], k + 32 * h, lane);
      }
    }
    for (int k = 0; k < dim; k += 64) {
      for (int digit = 0; digit < 4; ++digit) read_scales(read, y.scales[digit], k);
    }
    return y;
  }

  // The key that is column n of instruction j: what lane q has of four instructions, columns 2 q and 2 q + 1 of each,
  // are the keys 8 q .. 8 q + 7 of 32.
  static int key_of(int j, int n) { return j / 4 * 32 + n / 2 * 8 + j % 4 * 2 + n % 2; }

  Image k_image(char const* data) const {
    Image y(64, dim);
    Reader read(data);
    for (int j = 0; j < 8; ++j) {
      for (int lane = 0; lane < 32; ++lane) {
        for (int d = 0; d < dim; d += 32) read_register(read, y.codes[key_of(j, lane / 4)], d, lane);
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      for (int j = lane % 4; j < 8; j += 4) {
        for (int k = 0; k < dim; k += 64) read_scales(read, y.scales[key_of(j, lane / 4)], k);
      }
    }
    return y;
  }

  // Rows are channels.
  Image v_image(char const* data) const {
    Image y(dim, 64);
    Reader read(data);
    for (int d = 0; d < dim; d += 16) {
      for (int lane = 0; lane < 32; ++lane) {
        for (int n = 0; n < 16; n += 8) {
          for (int key = 0; key < 64; key += 32) read_register(read, y.codes[d + n + lane / 4], key, lane);
        }
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      for (int d = lane % 4 * 8; d < dim; d += 32) read_scales(read, y.scales[d + lane / 4], 0);
    }
    return y;
  }

  // mma.m16n8k32 of bytes, for P as mma.m16n8k64 has it: what lane q reads of 32 keys are its 8.
  Image v8_image(char const* data) const {
    Image y(dim, 64);
    Reader read(data);
    for (int key = 0; key < 64; key += 32) {
      for (int d = 0; d < dim; d += 16) {
        for (int lane = 0; lane < 32; ++lane) {
          for (int n = 0; n < 16; n += 8) {
            for (int i = 0; i < 8; ++i) y.codes[d + n + lane / 4][key + lane % 4 * 8 + i] = read.byte();
          }
        }
      }
    }
    return y;
  }

  // The power of two by which the quotient with amax is at most 448 * 6, but not smaller than 2^-115. It must be
  // `got`, which is `factor` times it.
  static double power_of_two(char const* what, int64_t index, double got, double factor, double amax, double slack) {
    if (!std::isfinite(amax)) {
      if (!std::isnan(got)) fail("%s[%ld] is %g, expected NaN", what, static_cast<long>(index), got);
      return NAN;
    }
    for (double y : {amax - kFloat * slack, amax + kFloat * slack}) {
      double const power = std::exp2(std::fmax(std::ceil(std::log2(std::fmax(y, 0.) / 2688.)), -115.));
      if (std::fabs(got - power * factor) <= kRelative * power * factor) return power;
    }
    fail("%s[%ld] is %g, the largest magnitude %g", what, static_cast<long>(index), got, amax);
  }

  // One row, in units of the power of two: x becomes what the blocks leave of it.
  static void check_row(char const* what, int row, std::vector<double>& x, bool scaled, std::vector<int> const& codes,
                        std::vector<int> const& scales, double slack) {
    for (int b = 0; b < static_cast<int>(scales.size()); ++b) {
      double const amax = greatest(std::vector<double>(x.begin() + b * 16, x.begin() + b * 16 + 16));
      double const tolerance = kFloat * slack;
      bool const finite = std::isfinite(amax);
      bool const right = !finite  ? scales[b] == 127
                         : scaled ? nearest(ue4m3, 127, scales[b], amax / 6., tolerance / 6.)
                                  : scales[b] == 0;
      if (!right) fail("scale of %s[%d, %d..] is %#x, the largest magnitude %g", what, row, b * 16, scales[b], amax);
      double const scale = finite ? ue4m3(scales[b]) : 0.;
      for (int i = b * 16; i < b * 16 + 16; ++i) {
        bool const near = scale > 0. ? nearest(e2m1, 16, codes[i], x[i] / scale, tolerance / scale) : codes[i] == 0;
        if (!near) fail("%s[%d, %d] is %g times %g, expected %g", what, row, i, e2m1(codes[i]), scale, x[i]);
        x[i] -= finite ? e2m1(codes[i]) * scale : 0.;
      }
    }
  }

  // What NVFP4 leaves of ordinary values: about a tenth.
  void check_left(char const* what, double left, double all, double limit) const {
    bool const ordinary = x.c.data == Data::kNormal || x.c.data == Data::kTiny || x.c.data == Data::kHuge;
    if (ordinary && !(left <= limit * limit * all)) fail("%s: relative error %g", what, std::sqrt(left / all));
  }

  static double squares(std::vector<double> const& row) {
    double sum = 0.;
    for (double y : row) sum += y * y;
    return sum;
  }

  void check_q(int b, int h) {
    auto const element = [&](int64_t i, int d) { return x.q(b, h, i, d); };
    std::vector<double> const k_mean_of = k_mean(b, h / (x.c.num_heads_q / x.c.num_heads_kv));
    double const log2_scale = std::fabs(x.c.softmax_scale) * kLog2e, sign = x.c.softmax_scale < 0 ? -1. : 1.;
    for (int64_t first = 0; first < x.rows_q(b); first += 128) {
      int64_t const tile = x.q_tile(b, h, first / 128);
      q_tile_written[tile] = true;
      Rows rows = rows_of(element, first, x.rows_q(b), 128);
      int const existing = static_cast<int>(std::min<int64_t>(128, x.rows_q(b) - first));
      for (int i = 0; i < existing && x.p.lse_shift; ++i) check_lse(b, h, first + i, rows[i], k_mean_of);
      std::vector<double> mean = q_mean(rows, existing);
      double slack = transform(rows, existing, mean);
      if (!x.c.smooth_q && !x.c.hadamard) slack = 0.;
      double amax = greatest(mean);
      for (auto const& row : rows) amax = larger(amax, greatest(row));
      double const power = power_of_two("q_scale", tile, x.q_scale[tile * kQScalesPerTile], log2_scale, amax, slack);
      bool const scaled = std::isfinite(power);
      double const unit = scaled ? sign / power : 1.;
      Image const image = q_image(x.q_out.data() + tile * q_tile);
      double left = 0., all = 0.;
      for (int i = 0; i < 128; ++i) {
        for (double& y : rows[i]) y *= unit;
        all += squares(rows[i]);
        check_row("q", i, rows[i], scaled, image.codes[i], image.scales[i],
                  i < existing ? slack * std::fabs(unit) : 0.);
        left += squares(rows[i]);
      }
      check_left("q", left, all, .12);
      if (!x.c.smooth_q) continue;
      for (double& y : mean) y *= unit;
      double const all_mean = squares(mean);
      Image const digits = q_mean_image(x.q_mean.data() + tile * q_mean_tile);
      for (int digit = 0; digit < 4; ++digit) {
        check_row("q_mean", digit, mean, scaled, digits.codes[digit], digits.scales[digit], slack * std::fabs(unit));
      }
      check_left("q_mean", squares(mean), all_mean, .0005);
    }
  }

  void check_k(int b, int h) {
    auto const element = [&](int64_t i, int d) { return x.k(b, h, i, d); };
    std::vector<double> const mean_of = k_mean(b, h);
    for (int64_t first = 0; first < x.rows_k(b); first += 64) {
      int64_t const tile = x.k_tile(b, h, first / 64);
      k_tile_written[tile] = true;
      Rows rows = rows_of(element, first, x.rows_k(b), 64);
      int const existing = static_cast<int>(std::min<int64_t>(64, x.rows_k(b) - first));
      std::vector<double> mean = mean_of;
      double slack = transform(rows, existing, mean), amax = 0.;
      if (!x.c.smooth_k && !x.c.hadamard) slack = 0.;
      for (auto const& row : rows) amax = larger(amax, greatest(row));
      double power = NAN;
      for (int64_t i = tile * 4; i < tile * 4 + 4; ++i)
        power = power_of_two("k_scale", i, x.k_scale[i], 1., amax, slack);
      bool const scaled = std::isfinite(power);
      char const* const out = x.k_out.data() + tile * k_tile;
      double all = 0.;
      for (auto& row : rows) {
        for (double& y : row) y /= scaled ? power : 1.;
        all += squares(row);
      }
      for (int plane = 0; plane < (x.c.smooth_q ? 2 : 1); ++plane) {
        Image const image = k_image(out + plane * k_plane);
        double left = 0.;
        for (int i = 0; i < 64; ++i) {
          check_row(plane ? "rest of k" : "k", i, rows[i], scaled, image.codes[i], image.scales[i],
                    i < existing ? slack / (scaled ? power : 1.) : 0.);
          left += squares(rows[i]);
        }
        check_left(plane ? "rest of k" : "k", left, all, plane ? .014 : .12);
      }
    }
  }

  void check_v(int b, int h) {
    auto const element = [&](int64_t i, int d) { return x.v(b, h, i, d); };
    int64_t const channel = (int64_t{b} * x.c.num_heads_kv + h) * dim;
    std::vector<double> const mean_of = mean(element, x.c.smooth_v ? x.rows_k(b) : 0);
    std::vector<double> amax(dim), slack(dim), units(dim);
    v_amax(b, h, mean_of, amax, slack);
    for (int d = 0; d < dim; ++d) {
      if (!x.c.smooth_v) slack[d] = 0.;
      double const scale = x.v_scale[channel + d];
      if (fp8_v) {
        expect_scale("v_scale", channel + d, scale, amax[d], x.c.v_max, slack[d]);
        units[d] = std::isfinite(amax[d]) ? std::fmax(amax[d], kAmaxFloor) / x.c.v_max : NAN;
      } else {
        units[d] = power_of_two("v_scale", channel + d, scale, 1., amax[d], slack[d]);
      }
    }
    for (int64_t first = 0; first < x.rows_k(b); first += 64) {
      int64_t const tile = x.k_tile(b, h, first / 64);
      k_tile_written[tile] = true;
      char const* const out = x.v_out.data() + tile * v_tile;
      Image const image = fp8_v ? v8_image(out) : v_image(out);
      int const existing = static_cast<int>(std::min<int64_t>(64, x.rows_k(b) - first));
      for (int d = 0; d < dim; ++d) {
        bool const scaled = std::isfinite(units[d]);
        double const unit = scaled ? units[d] : 1.;
        std::vector<double> y(64);
        for (int i = 0; i < existing && d < x.head_dim(); ++i) y[i] = (element(first + i, d) - mean_of[d]) / unit;
        if (fp8_v) {
          check_v8(d, y, scaled, existing, image.codes[d], slack[d] / unit);
        } else {
          check_row("v", d, y, scaled, image.codes[d], image.scales[d], slack[d] / unit);
          for (int i = existing; i < 64; ++i) {
            if (image.codes[d][i] % 8 != 0) fail("v[%d, %d], which does not exist, is %#x", i, d, image.codes[d][i]);
          }
        }
      }
    }
  }

  static void check_v8(int d, std::vector<double> const& y, bool scaled, int existing, std::vector<int> const& codes,
                       double slack) {
    auto const decode = [](int code) {
      return code % 128 == 127 ? INFINITY : static_cast<double>(e4m3_to_float(code));
    };
    for (int i = 0; i < 64; ++i) {
      bool const right = scaled && i < existing ? nearest(decode, 256, codes[i], y[i], kFloat * slack) : codes[i] == 0;
      if (!right) fail("v[%d, %d] is %#x, expected %g", i, d, codes[i], y[i]);
    }
  }

  static double larger(double a, double b) { return std::isnan(a) || std::isnan(b) ? NAN : std::fmax(a, b); }

  bool const fp8_v;
  int const q_tile, k_plane, k_tile, v_tile, q_mean_tile;  // bytes
};

}  // namespace

std::string check_nvfp4(Problem const& problem) {
  return what_fails([&] { Check(problem).run(); });
}

std::string check_e2m1() {
  return what_fails([] {
    auto const expect = [](float x, int code) {
      for (int sign : {0, 8}) {
        int const got = static_cast<int>(arch::round_to_e2m1(sign ? -x : x));
        if (got != code + sign) fail("%a becomes %d, expected %d", sign ? -x : x, got, code + sign);
      }
    };
    for (int code = 0; code < 8; ++code) {
      auto const value = static_cast<float>(kE2m1[code]);
      expect(value, code);
      if (code == 7) continue;
      auto const tie = static_cast<float>((kE2m1[code] + kE2m1[code + 1]) / 2.);
      expect(std::nextafter(tie, 0.f), code);
      expect(tie, code % 2 ? code + 1 : code);
      expect(std::nextafter(tie, 7.f), code + 1);
    }
    expect(7.f, 7);
    expect(INFINITY, 7);
    if (arch::round_to_e2m1(NAN) % 8 != 7) fail("NaN becomes %d", static_cast<int>(arch::round_to_e2m1(NAN)));

    float const x[8] = {.5f, -6.f, 0.f, 1.5f, -2.f, 3.f, 4.f, -1.f};
    uint32_t const codes = arch::round_to_e2m1x8(x);
    if (codes != 0xa65c30f1) fail("eight values become %#x", codes);
    float y[8];
    for (uint32_t all : {0x76543210u, 0xfedcba98u, codes}) {
      arch::e2m1x8_to_float(y, all);
      for (int i = 0; i < 8; ++i) {
        if (y[i] != e2m1(static_cast<int>(all >> 4 * i & 15))) fail("code %d is %g", all >> 4 * i & 15, y[i]);
      }
    }
  });
}

}  // namespace quantizer_test
