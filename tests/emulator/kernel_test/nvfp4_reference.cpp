// Attention over packed operands, as SageAttention3 defines it: P in blocks of 16 keys, relative to a whole number of
// octaves. A kernel may have another such number, and rounds to the other side what is close to a tie.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "common/numerics.h"
#include "common/nvfp4_format.h"
#include "kernel_test/nvfp4_packer.h"
#include "kernel_test/reference.h"

namespace kernel_test {
namespace {

constexpr int kStepKeys = 2 * sage::kKTileRows;  // of the kernel
constexpr int kWarpRows = 16;
double round_p(double x, double scale) { return round_to_e2m1(x / scale) * scale; }

double scale_of(int code) { return (1. + code % 8 / 8.) * std::exp2(code / 8 - 7); }

// One row.
class PackedRow {
 public:
  PackedRow(Problem const& problem, PackedQueries const& queries, PackedKeys const& keys, int dim, int b, int head,
            int64_t row)
      : problem_(problem), keys_(keys), dim_(dim), keys_count_(problem.seqlen_k(b)) {
    find_scores(b, head, row, &queries.q[row * dim], &queries.mean[row * dim]);
    lse_shift_ = queries.lse_shift[row];
    if (is_nan_ || !seen()) return;
    round_probabilities();
    for (int64_t j = 0; j < keys_count_; ++j) {
      sum_ += p_[j];
      sum_slack_ += slack_[j];
    }
  }

  bool seen() const { return seen_; }
  // Whether a key whose score is NaN is hidden by the mask, which is added.
  bool may_be_nan() const { return may_be_nan_; }
  double lse() const {
    return !seen() ? -INFINITY : is_nan_ ? NAN : (reference_ + std::log2(sum_)) * sage::kLn2 + lse_shift_;
  }
  double lse_bound() const {
    double const least = sum_ - sum_slack_;
    if (least <= 0.) return INFINITY;
    return sum_slack_ / least + accumulation() + (std::fabs(lse()) + std::fabs(lse_shift_)) * 4e-7 + 1e-6;
  }

  // A channel: what it should be, its bound, and the mean square of an error that is due to ties.
  struct Channel {
    double expected, bound, square;
  };
  Channel channel(int d) const {
    if (!seen()) return {0., 0., 0.};
    if (is_nan_) return {NAN, 0., 0.};
    double out = 0., magnitude = 0., linear = 0., square = 0.;
    for (int64_t j = 0; j < keys_count_; ++j) {
      if (scores_[j] == -INFINITY) continue;
      out += p_[j] / sum_ * v(j, d);
      magnitude += p_[j] / sum_ * std::fabs(v(j, d));
    }
    double const least = std::max(sum_ - sum_slack_, sum_ * 1e-3);
    for (int64_t j = 0; j < keys_count_; ++j) {
      if (slack_[j] == 0.) continue;
      double const x = slack_[j] / least * std::fabs(v(j, d) - out);
      linear += x;
      square += x * x;
    }
    double const expected = out + keys_.v_mean[d];
    double const rounding = std::fabs(expected) * unit_roundoff(problem_.desc.dtype) + 0x1p-25;
    double const arithmetic = accumulation() * magnitude + 1e-6 * std::fabs(keys_.v_mean[d]);
    return {expected, linear + rounding + arithmetic, square + rounding * rounding + arithmetic * arithmetic};
  }

 private:
  double v(int64_t j, int d) const { return keys_.v[j * dim_ + d]; }
  bool nvfp4() const { return problem_.desc.recipe.pv == sage::PvFormat::kNvfp4; }
  double p_max() const { return problem_.desc.recipe.p_max; }
  // Of float32 sums, relative to the sum of magnitudes.
  double accumulation() const { return 1e-6 + static_cast<double>(keys_count_) * 0x1p-25; }

  void find_scores(int b, int head, int64_t row, double const* q, double const* mean) {
    scores_.assign(keys_count_, -INFINITY);
    error_.assign(keys_count_, 0.);
    for (int64_t j = 0; j < keys_count_; ++j) {
      if (!problem_.reaches(b, row, j)) continue;
      double const *const k = &keys_.k[j * dim_], *const corrected = &keys_.k_corrected[j * dim_];
      double const mask = problem_.mask(b, head, row, j);
      bool const hidden = mask == -INFINITY;
      // The lowest number swallows what it is added to.
      bool const lowest = mask == -std::numeric_limits<float>::max();
      double score = hidden || lowest ? 0. : mask * sage::kLog2e, terms = std::fabs(score);
      for (int d = 0; d < dim_; ++d) {
        double const x = q[d] * k[d], y = mean[d] * corrected[d];
        score += x + y;
        terms += std::fabs(x) + std::fabs(y);
      }
      may_be_nan_ |= hidden && std::isnan(score);
      if (hidden) continue;
      scores_[j] = lowest ? mask : score;
      error_[j] = terms * 0x1p-21 + std::fabs(score) * 0x1p-21 + 1e-6;
      is_nan_ |= std::isnan(score);
      seen_ = true;
    }
  }

  // Relative to reference_, the last one.
  void round_probabilities() {
    bool const reverse = problem_.desc.recipe.key_order == sage::KeyOrder::kReverse;
    p_.assign(keys_count_, 0.);
    slack_.assign(keys_count_, 0.);
    int64_t const steps = (keys_count_ + kStepKeys - 1) / kStepKeys;
    reference_ = -INFINITY;
    std::vector<double> references(steps);
    for (int64_t i = 0; i < steps; ++i) {
      int64_t const step = reverse ? steps - 1 - i : i;
      for (int64_t j = step * kStepKeys; j < std::min((step + 1) * kStepKeys, keys_count_); ++j) {
        reference_ = std::max(reference_, std::ceil(scores_[j]));
      }
      references[step] = reference_;
    }
    for (int64_t j = 0; j < keys_count_; j += sage::kNvfp4Block) {
      int64_t const end = std::min<int64_t>(j + sage::kNvfp4Block, keys_count_);
      double const reference = references[j / kStepKeys];
      if (reference > -INFINITY) round_block(j, end, reference, std::exp2(reference - reference_));
    }
  }

  void round_block(int64_t begin, int64_t end, double reference, double unit) {
    double largest = 0., error = 0.;
    for (int64_t j = begin; j < end; ++j) {
      if (scores_[j] == -INFINITY) continue;
      largest = std::max(largest, p_max() * std::exp2(scores_[j] - reference));
      error = std::max(error, error_[j]);
    }
    if (!(largest > 0.)) return;
    double const code = 8. * std::log2(largest) + 35.;
    auto const code_of = [](double x) { return static_cast<int>(std::clamp(std::floor(x), 8., 126.)); };
    int const usual = code_of(code), least = code_of(code - 8. * error), most = code_of(code + 8. * error);
    for (int64_t j = begin; j < end; ++j) {
      if (scores_[j] == -INFINITY) continue;
      double const exact = p_max() * std::exp2(scores_[j] - reference);
      double const values[] = {exact * std::exp2(-error_[j]), exact, exact * std::exp2(error_[j])};
      double const value = nvfp4() ? round_p(exact, scale_of(usual)) : round_to_e4m3(exact);
      double slack = 0.;
      for (double x : values) {
        if (!nvfp4()) slack = std::max(slack, std::fabs(round_to_e4m3(x) - value));
        for (int c = least; c <= most && nvfp4(); ++c) {
          slack = std::max(slack, std::fabs(round_p(x, scale_of(c)) - value));
        }
      }
      // Near the least of the format P depends on a kernel's reference, which may be a lower one.
      double const half_place = nvfp4() ? std::max(0x1p-8, exact / 4.) : 0x1p-10;
      if (nvfp4() ? code < 8. : exact < 0x1p-6) slack += std::fabs(value - exact) + std::min(exact, half_place);
      p_[j] = value / p_max() * unit;
      slack_[j] = slack / p_max() * unit;
    }
  }

  Problem const& problem_;
  PackedKeys const& keys_;
  int dim_;
  int64_t keys_count_;
  bool is_nan_ = false, may_be_nan_ = false, seen_ = false;
  std::vector<double> scores_, error_, p_, slack_;
  double reference_ = 0., sum_ = 0., sum_slack_ = 0., lse_shift_ = 0.;
};

// V that is NaN reaches every row of a warp that goes through its step, because 0 times NaN is NaN, too.
bool may_be_nan(Problem const& p, PackedKeys const& keys, int dim, int b, int64_t row, int d) {
  for (int64_t j = 0; j < p.seqlen_k(b); ++j) {
    if (!std::isnan(keys.v[j * dim + d])) continue;
    int64_t const step = j / kStepKeys * kStepKeys, first = row / kWarpRows * kWarpRows;
    for (int64_t i = first; i < std::min(first + kWarpRows, p.seqlen_q(b)); ++i) {
      for (int64_t key = step; key < std::min(step + kStepKeys, p.seqlen_k(b)); ++key) {
        if (p.reaches(b, i, key)) return true;
      }
    }
  }
  return false;
}

}  // namespace

Comparison compare_packed(Problem const& p) {
  Packed const& packed = last_packed();
  int const dim = packed.head_dim, group = p.desc.num_heads_q / p.desc.num_heads_kv;
  Elements elements;
  double errors = 0., allowed = 0.;
  for (int b = 0; b < p.desc.batch; ++b) {
    for (int h = 0; h < p.desc.num_heads_q; ++h) {
      PackedKeys const& keys = packed.keys[b * p.desc.num_heads_kv + h / group];
      bool const v_is_nan = std::any_of(keys.v.begin(), keys.v.end(), [](double x) { return std::isnan(x); });
      for (int64_t i = 0; i < p.seqlen_q(b); ++i) {
        PackedRow const row(p, packed.queries[b * p.desc.num_heads_q + h], keys, dim, b, h, i);
        std::string const place = format("[%d, %d, %d]", b, h, static_cast<int>(i));
        for (int d = 0; d < p.desc.head_dim; ++d) {
          PackedRow::Channel const y = row.channel(d);
          double const got = to_float(p.out_row(b, h, i)[d], p.desc.dtype);
          bool const reached = v_is_nan && row.seen() && may_be_nan(p, keys, dim, b, i, d);
          bool const any = !std::isnan(y.expected) && (row.may_be_nan() || reached);
          elements.check(got, y.expected, any ? INFINITY : y.bound, format("channel %d of out", d) + place);
          if (std::isnan(y.expected) || any) continue;
          errors += (got - y.expected) * (got - y.expected);
          allowed += y.square;
        }
        double const lse_bound = row.may_be_nan() ? INFINITY : row.seen() ? row.lse_bound() : 0.;
        if (p.has_lse()) elements.check(p.lse(b, h, i), row.lse(), lse_bound, "lse" + place);
      }
    }
  }
  elements.check(std::sqrt(errors), 0., std::sqrt(allowed) * 2., "the root of all squared errors");
  return elements.result();
}

}  // namespace kernel_test
