#include "kernel_test/reference.h"

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <vector>

#include "common/quant_format.h"

namespace kernel_test {

using sage::DType;
using sage::PvAccum;

std::string format(char const* text, ...) {
  char buffer[256];
  va_list arguments;
  va_start(arguments, text);
  std::vsnprintf(buffer, sizeof buffer, text, arguments);
  va_end(arguments);
  return buffer;
}

double unit_roundoff(DType dtype) { return dtype == DType::kBFloat16 ? 0x1p-8 : 0x1p-11; }

void Elements::check(double got, double expected, double bound, std::string const& where) {
  bool const same = got == expected || (std::isnan(expected) && std::isnan(got));
  double const error = same ? 0. : std::fabs(got - expected);
  double const ratio = error == 0. || bound == INFINITY ? 0. : bound > 0. ? error / bound : INFINITY;
  if (!(ratio <= 1.)) ++wrong_;
  if (ratio <= worst_ || worst_ == INFINITY) return;
  worst_ = std::isnan(ratio) ? INFINITY : ratio;
  if (!(ratio <= 1.)) failure_ = format("%s is %g, expected %g +- %.2g", where.c_str(), got, expected, bound);
}

Comparison Elements::result() const {
  return {wrong_ ? failure_ + format("; %d elements are wrong", wrong_) : "", worst_};
}

namespace {

// approximate_exp: the e4m3 number whose code is the nearest to a linear function of log2(p). That of 2^x is 8 (x + 7),
// which between powers of two is too large for a logarithm by .0573 * 8 on average.
double interpolate_e4m3(double p) {
  int const code = static_cast<int>(std::clamp(std::nearbyint(8. * (std::log2(p) + 7. - .0573)), 0., 126.));
  return code < 8 ? std::ldexp(code, -9) : std::ldexp(8 + code % 8, code / 8 - 10);
}

// K and V of one head of one sequence.
struct Keys {
  std::vector<double> k, v, k_mean, v_mean;
  double k_max = 0;  // largest magnitude of K less its mean

  Keys(Problem const& p, int b, int head) {
    int const dim = p.desc.head_dim;
    int64_t const seqlen = p.seqlen_k(b);
    k_mean.assign(dim, 0.);
    v_mean.assign(dim, 0.);
    for (int64_t j = 0; j < seqlen; ++j) {
      for (int d = 0; d < dim; ++d) {
        k.push_back(to_float(p.k_row(b, head, j)[d], p.desc.dtype));
        v.push_back(to_float(p.v_row(b, head, j)[d], p.desc.dtype));
        k_mean[d] += k.back() / static_cast<double>(seqlen);
        v_mean[d] += v.back() / static_cast<double>(seqlen);
      }
    }
    if (!p.desc.recipe.smooth_k) k_mean.assign(dim, 0.);
    if (!p.desc.recipe.smooth_v) v_mean.assign(dim, 0.);
    for (size_t i = 0; i < k.size(); ++i) k_max = std::max(k_max, std::fabs(k[i] - k_mean[i % dim]));
  }
};

// One row of exact attention, with what the bounds of a kernel's row are made of.
class Row {
 public:
  Row(Problem const& problem, Keys const& keys, int b, int head, int64_t row)
      : problem_(problem), keys_(keys), row_(row), dim_(problem.desc.head_dim), q_(dim_) {
    for (int d = 0; d < dim_; ++d) q_[d] = to_float(problem_.q_row(b, head, row)[d], problem_.desc.dtype);
    find_scores(b, head, row);
    find_score_bound(problem.score_unit(b, head, row));
    if (seen()) find_probabilities();
  }

  bool seen() const { return max_ > -INFINITY; }
  // Of exact P, but of the P that the kernel sums where that sum is of rounded FP8 numbers.
  double lse() const { return seen() ? max_ + std::log(fp8() ? divisor_ : sum_) : -INFINITY; }

  double lse_bound() const {
    double shift = 0;
    for (int d = 0; d < dim_; ++d) shift += std::fabs(q_[d] * keys_.k_mean[d]);
    double const rounding = fp8() ? rounding_of_sum_ / least_divisor() + accumulation() : 0.;
    return score_bound_ + rounding + shift * scale() * 1e-6 + std::fabs(lse()) * 2e-7;
  }

  // Of all channels: what they should be, and their bounds. 8-bit P is rounded as the recipe says, because its error is
  // far larger than that of a wrong key.
  struct Out {
    std::vector<double> expected, bound;
  };
  Out out() const {
    Out y{std::vector<double>(dim_), std::vector<double>(dim_)};
    if (!seen()) return y;
    std::vector<double> sum(dim_), magnitude(dim_), largest(dim_), linear(dim_), square(dim_);
    for (int64_t j = 0; j < num_keys(); ++j) {
      double const p = p_[j] / divisor_, *const v = &keys_.v[j * dim_];
      for (int d = 0; d < dim_; ++d) {
        double const x = v[d] - keys_.v_mean[d];
        sum[d] += p * x;
        magnitude[d] += p * std::fabs(x);
        largest[d] = std::max(largest[d], std::fabs(x));
      }
    }
    for (int64_t j = 0; j < num_keys(); ++j) {
      double const p = p_rounding_[j] / least_divisor(), *const v = &keys_.v[j * dim_];
      if (p == 0.) continue;
      for (int d = 0; d < dim_; ++d) {
        double const x = std::fabs(p * (v[d] - keys_.v_mean[d] - (sums_rounded() ? sum[d] : 0.)));
        linear[d] += x;
        square[d] += x * x;
      }
    }
    double const roundoff = unit_roundoff(problem_.desc.dtype), accumulated = accumulation(), least = smallest();
    for (int d = 0; d < dim_; ++d) {
      double const mean = keys_.v_mean[d];
      // Errors of many keys add as those of independent uniform numbers do; of few keys at most in full.
      double const rounding = bytes() ? linear[d] : std::min(linear[d], 6. * std::sqrt(square[d] / 3.));
      y.expected[d] = sum[d] + mean;
      y.bound[d] = rounding + accumulated * magnitude[d] + least * largest[d] + 2. * score_bound_ * magnitude[d] +
                   std::fabs(y.expected[d]) * roundoff + 0x1p-25 + 1e-6 * (magnitude[d] + std::fabs(mean));
    }
    return y;
  }

 private:
  sage::Recipe const& recipe() const { return problem_.desc.recipe; }
  bool fp8() const { return recipe().pv == sage::PvFormat::kFp8E4m3; }
  bool integer() const { return recipe().pv == sage::PvFormat::kInt8; }
  bool bytes() const { return (fp8() || integer()) && problem_.is_exact(); }
  bool fp16_sums() const { return recipe().pv_accum == PvAccum::kFp16Fp32 || recipe().pv_accum == PvAccum::kFp16; }
  // Whether O is divided by the sum of the rounded P.
  bool sums_rounded() const { return integer() || (fp8() && !fp16_sums()); }
  double least_divisor() const { return divisor_ - rounding_of_sum_; }
  double scale() const { return std::fabs(problem_.softmax_scale); }
  int64_t num_keys() const { return static_cast<int64_t>(scores_.size()); }
  double num_tiles() const { return std::ceil(static_cast<double>(num_keys()) / sage::kKTileRows); }

  void find_scores(int b, int head, int64_t row) {
    int64_t const seqlen_k = problem_.seqlen_k(b);
    scores_.assign(seqlen_k, -INFINITY);
    for (int64_t j = 0; j < seqlen_k; ++j) {
      if (!problem_.sees(b, head, row, j)) continue;
      double dot = 0;
      for (int c = 0; c < dim_; ++c) dot += q_[c] * keys_.k[j * dim_ + c];
      scores_[j] = dot * problem_.softmax_scale + problem_.mask(b, head, row, j);
      max_ = std::max(max_, scores_[j]);
      min_ = std::min(min_, scores_[j]);
    }
  }

  // Of the scores' errors and, in proportion, of the probabilities'. `unit`: what one of q k is worth.
  void find_score_bound(double unit) {
    double q_sum = 0;
    for (double x : q_) q_sum += std::fabs(x);
    double const largest = std::max(std::fabs(max_), std::fabs(min_));
    // A float 1.5 * 2^23 too large: its last place is 1.5, and integer P wants it rounded down. With smooth_q both a
    // score and the maximum are such floats. Not where the unit is more than kMaxBiasedScale or, with smooth_q,
    // kMaxRoundedUnit of the kernels.
    unit = std::min(unit, (fp8() && !recipe().smooth_q ? .03125 : .125) * std::log(2.));
    score_bound_ = unit * (integer() || recipe().smooth_q ? 1.5 : .75) + largest * 4e-7 + 1e-6;
    if (recipe().smooth_q) score_bound_ += q_sum * keys_.k_max * scale() * 4e-7;
  }

  // P relative to the row's maximum, the sum that O is divided by, and what each P may be wrong by.
  void find_probabilities() {
    DType const operand = recipe().pv_accum == PvAccum::kFp32 ? problem_.desc.dtype : DType::kFloat16;
    for (double score : scores_) {
      double const p = std::exp(score - max_);
      sum_ += p;
      p_.push_back(p);
      // Subnormal fp16 has 2^-25. Below a stale maximum P is larger, never smaller.
      p_rounding_.push_back(p == 0. ? 0. : p * unit_roundoff(operand) + 0x1p-25);
    }
    if (bytes()) round_probabilities();
    divisor_ = sum_;
    if (bytes() && sums_rounded()) {
      divisor_ = 0.;
      for (double p : p_) divisor_ += p;
      for (double x : p_rounding_) rounding_of_sum_ += x;
    }
  }

  // P of this row and a key, p times its factor, as the kernel stores it.
  double rounded(double p, int64_t key) const {
    if (!fp8()) return std::nearbyint(p);
    return interpolated(key) ? interpolate_e4m3(p) : round_to_e4m3(p);
  }
  // approximate_exp: a quarter of each 64 x 64 scores, half of the keys of an accumulator row's every other 32.
  bool interpolated(int64_t key) const {
    return recipe().approximate_exp && key % 32 >= 16 && key / 32 % 2 == row_ % 16 / 8;
  }

  // Integer P: to 255ths of the largest of each tile of keys. FP8: to e4m3 relative to p_max, which the largest of the
  // steps up to this one has. What is close to the middle of two may go to either.
  void round_probabilities() {
    bool const reverse = recipe().key_order == sage::KeyOrder::kReverse;
    int64_t const step = problem_.keys_per_step(), steps = (num_keys() + step - 1) / step;
    double const p_max = recipe().p_max;
    double max = -INFINITY;
    for (int64_t i = 0; i < steps; ++i) {
      int64_t const first = (reverse ? steps - 1 - i : i) * step, last = std::min<int64_t>(num_keys(), first + step);
      double const step_max = *std::max_element(scores_.begin() + first, scores_.begin() + last);
      max = fp8() ? std::max(max, step_max) : step_max;
      double const fold = max == -INFINITY ? 0. : std::exp(max - max_) / p_max;
      for (int64_t j = first; j < last; ++j) {
        double const exact = scores_[j] == -INFINITY ? 0. : p_max * std::exp(scores_[j] - max);
        double const slack = exact * score_bound_ + (integer() ? 1e-4 : exact * 1e-6), code = rounded(exact, j);
        double const least = rounded(std::max(exact - slack, 0.), j), most = rounded(exact + slack, j);
        p_[j] = code * fold;
        p_rounding_[j] = exact == 0. ? 0. : std::max(most - code, code - least) * fold;
      }
    }
  }

  // Relative to sum |P V|: roundings of accumulators, each at most that of the whole sum. With fp16 alone those of all
  // keys and of the moves of the maximum, as if independent; with fp16 and then float32 one per 16 keys of a tile. FP8
  // adds two steps of 32 keys in fp16, folds them and moves the maximum, by a factor that is rounded as well; its
  // float32 accumulators, where they are reduced, are cut three times a step, as are those of the divisor.
  double accumulation() const {
    auto const independent = [](double roundings) {
      return std::min(roundings, 6. * std::sqrt(roundings / 3.)) * 0x1p-11;
    };
    if (fp8()) {
      if (fp16_sums()) return independent(5. * num_tiles());
      bool const reduced = problem_.has_reduced_sums();
      return reduced ? 2. * 3. * 2. * num_tiles() * 0x1p-13 : 0.;
    }
    switch (recipe().pv_accum) {
      case PvAccum::kFp16Fp32: return sage::kKTileRows / 16 * 0x1p-11;
      case PvAccum::kFp16: return 6. * std::sqrt((sage::kKTileRows / 16 + 1) * num_tiles() / 3.) * 0x1p-11;
      default: return 0.;
    }
  }

  // Relative to the largest |V| of a channel: what fp16 numbers near zero lose, twice a tile, where FP8 V is at most
  // v_max and the accumulators that tiles are folded into are 2^-7 of the sum; and what a factor near zero, by which
  // these are multiplied when the maximum moves, leaves of them.
  double smallest() const {
    if (!fp8() || !fp16_sums()) return 0.;
    double const of_sums = 2. * num_tiles() * 0x1p-18 / (recipe().p_max * recipe().v_max);
    return (of_sums + static_cast<double>(num_keys()) * 0x1p-25) / divisor_;
  }

  Problem const& problem_;
  Keys const& keys_;
  int64_t row_;
  int dim_;
  std::vector<double> q_, scores_, p_, p_rounding_;
  double max_ = -INFINITY, min_ = INFINITY, sum_ = 0., divisor_ = 0., rounding_of_sum_ = 0., score_bound_ = 0.;
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
  Elements elements;
  for_each_row(p, [&](int b, int h, int64_t i, Row const& row) {
    uint16_t const* const out = p.out_row(b, h, i);
    Row::Out const y = row.out();
    std::string const place = format("[%d, %d, %d]", b, h, static_cast<int>(i));
    for (int d = 0; d < p.desc.head_dim; ++d) {
      elements.check(to_float(out[d], p.desc.dtype), y.expected[d], y.bound[d], format("channel %d of out", d) + place);
    }
    if (p.has_lse()) elements.check(p.lse(b, h, i), row.lse(), row.seen() ? row.lse_bound() : 0., "lse" + place);
  });
  return elements.result();
}

// The larger one; NaN if one of them is.
static void raise(double& most, double x) {
  if (most == most && !(x <= most)) most = x;
}

namespace {

struct Limits {
  double nrmse, max, lse;
};

}  // namespace

// About 1.5 times what the recipes have on these problems, at head_dim 64 to 256.
static Limits recipe_limits(sage::Recipe const& recipe) {
  if (recipe.qk == sage::QkFormat::kInt4 || recipe.qk == sage::QkFormat::kNvfp4) return {.3, .8, .4};
  switch (recipe.pv) {
    case sage::PvFormat::kInt8: return {.03, .04, .03};
    case sage::PvFormat::kFp8E4m3: return {.055, .2, .05};
    default: return {.02, .04, .03};
  }
}

Comparison compare_recipe(Problem const& p) {
  double squared_error = 0, squared = 0, max_error = 0, lse_error = 0;
  for_each_row(p, [&](int b, int h, int64_t i, Row const& row) {
    Row::Out const y = row.out();
    for (int d = 0; d < p.desc.head_dim; ++d) {
      double const error = std::fabs(to_float(p.out_row(b, h, i)[d], p.desc.dtype) - y.expected[d]);
      squared_error += error * error;
      squared += y.expected[d] * y.expected[d];
      raise(max_error, error);
    }
    double const error = p.lse(b, h, i) == row.lse() ? 0. : std::fabs(p.lse(b, h, i) - row.lse());
    raise(lse_error, error);
  });
  Limits const limits = recipe_limits(p.desc.recipe);
  double const nrmse = std::sqrt(squared_error / squared);
  Comparison result{"", std::max({nrmse / limits.nrmse, max_error / limits.max, lse_error / limits.lse})};
  if (!(nrmse <= limits.nrmse && max_error <= limits.max && lse_error <= limits.lse)) {
    result.worst = INFINITY;
    result.failure = format("NRMSE is %.3g, at most %g; largest error %.3g, at most %g; of the LSE %.3g, at most %g",
                            nrmse, limits.nrmse, max_error, limits.max, lse_error, limits.lse);
  }
  return result;
}

}  // namespace kernel_test
