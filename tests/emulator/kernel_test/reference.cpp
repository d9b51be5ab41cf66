#include "kernel_test/reference.h"

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <vector>

#include "common/quant_format.h"

namespace kernel_test {

using sage::DType;

namespace {

__attribute__((format(printf, 1, 2))) std::string format(char const* text, ...) {
  char buffer[256];
  va_list arguments;
  va_start(arguments, text);
  std::vsnprintf(buffer, sizeof buffer, text, arguments);
  va_end(arguments);
  return buffer;
}

// Half a unit in the last place of 1.
double unit_roundoff(DType dtype) { return dtype == DType::kBFloat16 ? 0x1p-8 : 0x1p-11; }

// K and V of one head of one sequence.
struct Keys {
  std::vector<double> k, v, k_mean;
  double k_max = 0;  // largest magnitude of K less its mean

  Keys(Problem const& p, int b, int head) {
    int const dim = p.desc.head_dim;
    int64_t const seqlen = p.seqlen_k(b);
    k_mean.assign(dim, 0.);
    for (int64_t j = 0; j < seqlen; ++j) {
      for (int d = 0; d < dim; ++d) {
        k.push_back(to_float(p.k_row(b, head, j)[d], p.desc.dtype));
        v.push_back(to_float(p.v_row(b, head, j)[d], p.desc.dtype));
        k_mean[d] += k.back() / static_cast<double>(seqlen);
      }
    }
    if (!p.desc.recipe.smooth_k) k_mean.assign(dim, 0.);
    for (size_t i = 0; i < k.size(); ++i) k_max = std::max(k_max, std::fabs(k[i] - k_mean[i % dim]));
  }
};

// One row of exact attention, with what the bounds of a kernel's row are made of.
class Row {
 public:
  Row(Problem const& problem, Keys const& keys, int b, int head, int64_t row)
      : problem_(problem), keys_(keys), dim_(problem.desc.head_dim), q_(dim_) {
    for (int d = 0; d < dim_; ++d) q_[d] = to_float(problem_.q_row(b, head, row)[d], problem_.desc.dtype);
    find_scores(b, head, row);
    if (seen()) find_probabilities();
  }

  bool seen() const { return max_ > -INFINITY; }
  double lse() const { return seen() ? max_ + std::log(sum_) : -INFINITY; }

  // Of the scores' errors and, in proportion, of the probabilities'.
  double score_bound() const {
    double q_max = 0;
    for (double x : q_) q_max = std::max(q_max, std::fabs(x));
    double const largest = std::max(std::fabs(max_), std::fabs(min_));
    // A float 1.5 * 2^23 too large, in units of one of q k: its last place is 1.5, and integer P wants it rounded down.
    double const unit = scale() * (q_max / 127.) * (keys_.k_max / 127.);
    return unit * (integer() ? 1.5 : .75) + largest * 4e-7 + 1e-6;
  }

  double lse_bound() const {
    double shift = 0;
    for (int d = 0; d < dim_; ++d) shift += std::fabs(q_[d] * keys_.k_mean[d]);
    return score_bound() + shift * scale() * 1e-6 + std::fabs(lse()) * 2e-7;
  }

  // One channel: what it should be, and its bound. Integer P is rounded as the recipe says, because its error is far
  // larger than that of a wrong key.
  void out(int channel, double* expected, double* bound) const {
    *expected = *bound = 0.;
    if (!seen()) return;
    double magnitude = 0;
    for (int64_t j = 0; j < num_keys(); ++j) {
      *expected += p_[j] * v(j, channel) / divisor_;
      magnitude += p_[j] * std::fabs(v(j, channel)) / divisor_;
    }
    double linear = 0, square = 0;
    for (int64_t j = 0; j < num_keys(); ++j) {
      // The divisor has the rounded P in it where P is an integer, else P itself.
      double const x = p_rounding_[j] * (v(j, channel) - (integer() ? *expected : 0.)) / divisor_;
      linear += std::fabs(x);
      square += x * x;
    }
    // Errors of many keys add as those of independent uniform numbers do; of few keys at most in full.
    double const rounding = integer() ? linear : std::min(linear, 6. * std::sqrt(square / 3.));
    *bound = rounding + accumulation() * magnitude + 2. * score_bound() * magnitude +
             std::fabs(*expected) * unit_roundoff(problem_.desc.dtype) + 0x1p-25 + 1e-6 * magnitude;
  }

 private:
  bool integer() const { return problem_.desc.recipe.pv == sage::PvFormat::kInt8; }
  double scale() const { return std::fabs(problem_.softmax_scale); }
  int64_t num_keys() const { return static_cast<int64_t>(scores_.size()); }
  double v(int64_t key, int channel) const { return keys_.v[key * dim_ + channel]; }

  void find_scores(int b, int head, int64_t row) {
    sage::AttnDesc const& d = problem_.desc;
    int64_t const seqlen_k = problem_.seqlen_k(b), diagonal = row + seqlen_k - problem_.seqlen_q(b);
    scores_.assign(seqlen_k, -INFINITY);
    for (int64_t j = 0; j < seqlen_k; ++j) {
      bool const hidden = (d.causal && j > diagonal) || (d.window_left >= 0 && j < diagonal - d.window_left) ||
                          (d.window_right >= 0 && j > diagonal + d.window_right);
      double const mask = problem_.mask(b, head, row, j);
      if (hidden || mask == -INFINITY) continue;
      double dot = 0;
      for (int c = 0; c < dim_; ++c) dot += q_[c] * keys_.k[j * dim_ + c];
      scores_[j] = dot * problem_.softmax_scale + mask;
      max_ = std::max(max_, scores_[j]);
      min_ = std::min(min_, scores_[j]);
    }
  }

  // P relative to the row's maximum, the sum that O is divided by, and what each P may be wrong by.
  void find_probabilities() {
    DType const operand = problem_.desc.recipe.pv_accum == sage::PvAccum::kFp32 ? problem_.desc.dtype : DType::kFloat16;
    for (double score : scores_) {
      double const p = std::exp(score - max_);
      sum_ += p;
      p_.push_back(p);
      // Subnormal fp16 has 2^-25. Below a stale maximum P is larger, never smaller.
      p_rounding_.push_back(p == 0. ? 0. : p * unit_roundoff(operand) + 0x1p-25);
    }
    divisor_ = sum_;
    if (integer()) round_probabilities();
  }

  // To 255ths of the largest of each tile of keys. What is close to the middle of two may go to either.
  void round_probabilities() {
    divisor_ = 0.;
    for (int64_t first = 0; first < num_keys(); first += sage::kKTileRows) {
      int64_t const last = std::min<int64_t>(num_keys(), first + sage::kKTileRows);
      double const tile_max = *std::max_element(scores_.begin() + first, scores_.begin() + last);
      double const fold = tile_max == -INFINITY ? 0. : std::exp(tile_max - max_);
      for (int64_t j = first; j < last; ++j) {
        double const exact = scores_[j] == -INFINITY ? 0. : 255. * std::exp(scores_[j] - tile_max);
        double const rounded = std::nearbyint(exact), slack = exact * score_bound() + 1e-4;
        p_[j] = rounded / 255. * fold;
        p_rounding_[j] = exact > 0. && std::fabs(exact - rounded) + slack >= .5 ? std::ceil(slack) / 255. * fold : 0.;
        divisor_ += p_[j];
      }
    }
  }

  // Roundings of fp16 accumulators, each at most that of the whole sum: one per 16 keys; with fp16 alone, those of all
  // keys and one per move of the maximum, as if independent.
  double accumulation() const {
    double const tiles = std::ceil(static_cast<double>(num_keys()) / sage::kKTileRows);
    switch (problem_.desc.recipe.pv_accum) {
      case sage::PvAccum::kFp16Fp32: return sage::kKTileRows / 16 * 0x1p-11;
      case sage::PvAccum::kFp16: return 6. * std::sqrt((sage::kKTileRows / 16 + 1) * tiles / 3.) * 0x1p-11;
      default: return 0.;
    }
  }

  Problem const& problem_;
  Keys const& keys_;
  int dim_;
  std::vector<double> q_, scores_, p_, p_rounding_;
  double max_ = -INFINITY, min_ = INFINITY, sum_ = 0., divisor_ = 0.;
};

// Calls visit(b, head, row, exact row) for all rows of queries.
template <class Visit>
void for_each_row(Problem const& p, Visit&& visit) {
  int const group = p.desc.num_heads_q / p.desc.num_heads_kv;
  for (int b = 0; b < p.desc.batch; ++b) {
    for (int h = 0; h < p.desc.num_heads_q; ++h) {
      Keys const keys(p, b, h / group);
      for (int64_t row = 0; row < p.seqlen_q(b); ++row) visit(b, h, row, Row(p, keys, b, h, row));
    }
  }
}

}  // namespace

Comparison compare_elements(Problem const& p) {
  Comparison result{"", 0.};
  int wrong = 0;
  auto const check = [&](double got, double expected, double bound, auto const& where) {
    double const error = got == expected ? 0. : std::fabs(got - expected);
    double const ratio = error == 0. ? 0. : bound > 0. ? error / bound : INFINITY;
    if (!(ratio <= 1.)) ++wrong;
    if (ratio <= result.worst) return;
    result.worst = std::isnan(ratio) ? INFINITY : ratio;
    if (!(ratio <= 1.)) result.failure = where() + format(" is %g, expected %g +- %.2g", got, expected, bound);
  };
  for_each_row(p, [&](int b, int h, int64_t i, Row const& row) {
    uint16_t const* const out = p.out_row(b, h, i);
    for (int d = 0; d < p.desc.head_dim; ++d) {
      double expected, bound;
      row.out(d, &expected, &bound);
      check(to_float(out[d], p.desc.dtype), expected, bound,
            [&] { return format("out[%d, %d, %d, %d]", b, h, static_cast<int>(i), d); });
    }
    if (p.has_lse()) {
      check(p.lse(b, h, i), row.lse(), row.seen() ? row.lse_bound() : 0.,
            [&] { return format("lse[%d, %d, %d]", b, h, static_cast<int>(i)); });
    }
  });
  if (wrong) result.failure += format("; %d elements are wrong", wrong);
  return result;
}

// The larger one; NaN if one of them is.
static void raise(double& most, double x) {
  if (most == most && !(x <= most)) most = x;
}

Comparison compare_recipe(Problem const& p) {
  double squared_error = 0, squared = 0, max_error = 0, lse_error = 0;
  for_each_row(p, [&](int b, int h, int64_t i, Row const& row) {
    for (int d = 0; d < p.desc.head_dim; ++d) {
      double expected, bound;
      row.out(d, &expected, &bound);
      double const error = std::fabs(to_float(p.out_row(b, h, i)[d], p.desc.dtype) - expected);
      squared_error += error * error;
      squared += expected * expected;
      raise(max_error, error);
    }
    double const error = p.lse(b, h, i) == row.lse() ? 0. : std::fabs(p.lse(b, h, i) - row.lse());
    raise(lse_error, error);
  });
  // About 1.5 times what the recipes have on these problems, at head_dim 64 to 256: NRMSE .008 to .0135, with INT8 P
  // and V to .0165, a largest error of .025, and .021 in the LSE.
  bool const integer = p.desc.recipe.pv == sage::PvFormat::kInt8;
  double const nrmse = std::sqrt(squared_error / squared), nrmse_limit = integer ? .025 : .02;
  double const max_limit = .04, lse_limit = .03;
  Comparison result{"", std::max({nrmse / nrmse_limit, max_error / max_limit, lse_error / lse_limit})};
  if (!(nrmse <= nrmse_limit && max_error <= max_limit && lse_error <= lse_limit)) {
    result.worst = INFINITY;
    result.failure = format("NRMSE is %.3g, at most %g; largest error %.3g, at most %g; of the LSE %.3g, at most %g",
                            nrmse, nrmse_limit, max_error, max_limit, lse_error, lse_limit);
  }
  return result;
}

}  // namespace kernel_test
