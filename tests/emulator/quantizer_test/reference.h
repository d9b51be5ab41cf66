// What the checks of all quantizers' outputs are made of: the inputs transformed by plain arithmetic in double
// precision.
#pragma once
#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "quantizer_test/problem.h"

namespace quantizer_test {

using Rows = std::vector<std::vector<double>>;  // [row][channel, up to the padded head_dim]

struct Failure {
  std::string what;
};

[[gnu::format(printf, 1, 2)]] [[noreturn]] void fail(char const* format, ...);

constexpr double kAmaxFloor = 1e-34;
constexpr double kFloat = 1e-5;  // what float32 sums may be off, relative to their largest terms

// `slack` is the largest magnitude that float32 had to do with.
void expect_scale(char const* what, int64_t index, double scale, double amax, double limit, double slack);

double greatest(std::vector<double> const& row);  // magnitude; NaN if there is one

float e4m3_to_float(int code);

class Reference {
 public:
  explicit Reference(Problem const& x)
      : x(x),
        dim(x.kernels.head_dim),
        q_tile_written(x.c.num_heads_q * x.p.q_tiles.per_head),
        k_tile_written(x.c.num_heads_kv * x.p.k_tiles.per_head) {}

 protected:
  using Element = std::function<float(int64_t, int)>;

  // Tiles that are not written, the last `tail` elements of those that are, and what is behind them.
  template <class T>
  static void untouched(char const* what, std::vector<T> const& buffer, std::vector<bool> const& written, int per_tile,
                        int tail = 0) {
    for (size_t i = 0; i < buffer.size(); ++i) {
      size_t const tile = i / per_tile;
      if (tile < written.size() && written[tile] && i % per_tile < size_t(per_tile - tail)) continue;
      auto const* const bytes = reinterpret_cast<char const*>(&buffer[i]);
      bool const same = std::all_of(bytes, bytes + sizeof(T), [](char y) { return y == Problem::kUntouched; });
      if (!same) fail("%s[%zu] was written", what, i);
    }
  }
  void check_fold_slots() const;

  // The rows [first, first + count) of one head, zeros where the sequence or head_dim ends.
  Rows rows_of(Element const& element, int64_t first, int64_t end, int count) const;
  // Means of the channels of K or V over the sequence; of K, zeros if it is not smoothed.
  std::vector<double> mean(Element const& element, int64_t rows) const;
  std::vector<double> k_mean(int b, int h) const;
  // Of a tile's rows; zeros if Q is not smoothed.
  std::vector<double> q_mean(Rows const& rows, int existing) const;
  // Subtracts the mean of the rows that exist, rotates both; returns the largest magnitude that float32 had to do with.
  double transform(Rows& rows, int existing, std::vector<double>& mean) const;
  // Of each channel of V the largest magnitude without the mean, and the largest that float32 had to do with; checks
  // the mean that was stored.
  void v_amax(int b, int h, std::vector<double> const& mean, std::vector<double>& amax,
              std::vector<double>& slack) const;
  void check_lse(int b, int h, int64_t row, std::vector<double> const& q, std::vector<double> const& k) const;

  Problem const& x;
  int const dim;
  std::vector<bool> q_tile_written, k_tile_written;
};

// Runs a check that fails by `fail`: what is wrong; empty if nothing.
template <class Check>
std::string what_fails(Check const& check) {
  try {
    check();
  } catch (Failure const& failure) {
    return failure.what;
  }
  return "";
}

}  // namespace quantizer_test
