#include "quantizer_test/reference.h"

#include <cuda_fp8.h>

#include <cmath>
#include <cstdarg>
#include <cstdio>

#include "common/quant_format.h"

namespace quantizer_test {

void fail(char const* format, ...) {
  char text[300];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  throw Failure{text};
}

void expect_scale(char const* what, int64_t index, double scale, double amax, double limit, double slack) {
  double const expected = std::fmax(amax, kAmaxFloor) / limit;
  bool const right =
      std::isfinite(amax) ? std::fabs(scale - expected) <= kFloat * (expected + slack / limit) : std::isnan(scale);
  if (!right) fail("%s[%ld] is %g, expected %g", what, static_cast<long>(index), scale, expected);
}

double greatest(std::vector<double> const& row) {
  double amax = 0.;
  for (double y : row) amax = std::isnan(y) || std::isnan(amax) ? NAN : std::fmax(amax, std::fabs(y));
  return amax;
}

float e4m3_to_float(int code) {
  __half_raw const half = __nv_cvt_fp8_to_halfraw(static_cast<__nv_fp8_storage_t>(code), __NV_E4M3);
  return __half2float(__half(half));
}

// By the definition, and then in the order and with the signs of the quantizers: the bits of a channel's number below
// the lowest 2 move up by one, the uppermost goes to the third place, and neighbours among them that are both set
// change the sign.
static std::vector<double> rotated(std::vector<double> const& x) {
  int const n = static_cast<int>(x.size());
  std::vector<double> y(n);
  for (int i = 0; i < n; ++i) {
    double sum = 0.;
    for (int j = 0; j < n; ++j) sum += (__builtin_popcount(i & j) % 2 ? -1. : 1.) * sage::hadamard_sign(j) * x[j];
    int const upper = i >> 2, place = i % 4 + ((upper << 1) % (n / 4) + (i >= n / 2 ? 1 : 0)) * 4;
    y[place] = (__builtin_popcount(upper & upper >> 1) % 2 ? -1. : 1.) * sum / std::sqrt(n);
  }
  return y;
}

void Reference::check_fold_slots() const {
  for (size_t i = 0; i < x.fold_busy.size(); ++i) {
    bool const in = i < Problem::kFoldSlots;
    if (in ? x.fold_busy[i] != 0 : x.fold_busy[i] == 0) fail("fold_busy[%zu] is %#x", i, x.fold_busy[i]);
  }
}

Rows Reference::rows_of(Element const& element, int64_t first, int64_t end, int count) const {
  Rows rows(count, std::vector<double>(dim));
  for (int i = 0; i < count && first + i < end; ++i) {
    for (int d = 0; d < x.head_dim(); ++d) rows[i][d] = element(first + i, d);
  }
  return rows;
}

std::vector<double> Reference::mean(Element const& element, int64_t rows) const {
  std::vector<double> sums(dim);
  for (int64_t i = 0; i < rows; ++i) {
    for (int d = 0; d < x.head_dim(); ++d) sums[d] += element(i, d);
  }
  for (double& sum : sums) sum = rows ? sum / static_cast<double>(rows) : 0.;
  return sums;
}

std::vector<double> Reference::k_mean(int b, int h) const {
  return mean([&](int64_t i, int d) { return x.k(b, h, i, d); }, x.c.smooth_k ? x.rows_k(b) : 0);
}

std::vector<double> Reference::q_mean(Rows const& rows, int existing) const {
  std::vector<double> mean(dim);
  for (int d = 0; d < dim && x.c.smooth_q; ++d) {
    for (auto const& row : rows) mean[d] += row[d] / existing;
  }
  return mean;
}

double Reference::transform(Rows& rows, int existing, std::vector<double>& mean) const {
  double slack = greatest(mean);
  for (int i = 0; i < static_cast<int>(rows.size()); ++i) {
    slack = std::fmax(slack, greatest(rows[i]));
    for (int d = 0; d < dim && i < existing; ++d) rows[i][d] -= mean[d];
    if (x.c.hadamard) rows[i] = rotated(rows[i]);
  }
  if (x.c.hadamard) mean = rotated(mean);
  return x.c.hadamard ? slack * std::sqrt(dim) : slack;
}

void Reference::v_amax(int b, int h, std::vector<double> const& mean, std::vector<double>& amax,
                       std::vector<double>& slack) const {
  int64_t const channel = (int64_t{b} * x.c.num_heads_kv + h) * dim;
  for (int d = 0; d < dim; ++d) {
    for (int64_t i = 0; i < x.rows_k(b) && d < x.head_dim(); ++i) {
      double const y = std::fabs(x.v(b, h, i, d) - mean[d]);
      amax[d] = std::isnan(y) || std::isnan(amax[d]) ? NAN : std::fmax(amax[d], y);
      slack[d] = std::fmax(slack[d], std::fabs(x.v(b, h, i, d)));
    }
    if (!x.c.smooth_v) continue;
    double const got = x.v_mean[channel + d];
    bool const right = std::isfinite(amax[d]) ? std::fabs(got - mean[d]) <= kFloat * slack[d] : !std::isfinite(got);
    if (!right) fail("v_mean[%ld] is %g, expected %g", static_cast<long>(channel + d), got, mean[d]);
  }
}

void Reference::check_lse(int b, int h, int64_t row, std::vector<double> const& q, std::vector<double> const& k) const {
  double expected = 0., magnitude = 0.;
  for (int d = 0; d < dim; ++d) {
    expected += q[d] * k[d] * x.c.softmax_scale;
    magnitude += std::fabs(q[d] * k[d] * x.c.softmax_scale);
  }
  double const got = x.lse_shift_of(b, h, row);
  double const allowed = kFloat * magnitude + 1e-40;  // a subnormal float32
  bool const right = magnitude < 1e38 ? std::fabs(got - expected) <= allowed : !std::isfinite(got);
  if (!right) fail("lse_shift[%d, %d, %ld] is %g, expected %g", b, h, static_cast<long>(row), got, expected);
}

}  // namespace quantizer_test
