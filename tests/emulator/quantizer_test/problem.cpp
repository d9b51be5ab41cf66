#include "quantizer_test/problem.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <numeric>

#include "common/nvfp4_format.h"
#include "common/quant_format.h"

namespace quantizer_test {

using sage::kKTileRows;
using sage::kQTileRows;

Input::Input(bool odd, int64_t batch, int64_t heads, int64_t rows, int64_t head_dim) {
  if (odd) {
    int64_t const row = head_dim + 3 - head_dim % 2, head = row * rows + 5;
    view_ = {nullptr, head * heads + 2, head, row};
  } else {
    view_ = {nullptr, rows * heads * head_dim, head_dim, heads * head_dim};
  }
  constexpr int64_t kBehind = 64;  // a tile's rows of any head_dim would begin to be read here
  data_.assign(static_cast<size_t>(batch * view_.stride_batch + rows * view_.stride_seq + kBehind + 16), 0xFFFF);
  uintptr_t const misaligned = reinterpret_cast<uintptr_t>(data_.data()) % 16;
  view_.data = data_.data() + (16 - misaligned) / 2 + (odd ? 1 : 0);
}

uint16_t* Input::row(int64_t batch, int64_t head, int64_t row) const {
  return static_cast<uint16_t*>(view_.data) + batch * view_.stride_batch + head * view_.stride_head +
         row * view_.stride_seq;
}

static std::vector<int32_t> cumulative(std::vector<int32_t> const& lengths) {
  std::vector<int32_t> sums(1, 0);
  for (int32_t length : lengths) sums.push_back(sums.back() + length);
  return sums;
}

static Input input(Case const& c, std::vector<int32_t> const& lengths, int heads) {
  return Input(c.odd, c.packed ? 1 : static_cast<int64_t>(lengths.size()), heads,
               c.packed ? cumulative(lengths).back() : lengths[0], c.head_dim);
}

Problem::Problem(Case const& c, Kernels const& kernels)
    : c(c),
      kernels(kernels),
      cu_seqlens_q_(cumulative(c.seqlens_q)),
      cu_seqlens_k_(cumulative(c.seqlens_k)),
      q_(input(c, c.seqlens_q, c.num_heads_q)),
      k_(input(c, c.seqlens_k, c.num_heads_kv)),
      v_(input(c, c.seqlens_k, c.num_heads_kv)) {
  int const batch = static_cast<int>(c.seqlens_q.size()), padded = kernels.head_dim;
  int64_t const longest_q = *std::max_element(c.seqlens_q.begin(), c.seqlens_q.end()),
                longest_k = *std::max_element(c.seqlens_k.begin(), c.seqlens_k.end());
  fill();

  p = {};
  p.q = q_.view();
  p.k = k_.view();
  p.v = v_.view();
  if (c.packed) p.q.stride_batch = p.k.stride_batch = p.v.stride_batch = 0;
  p.dtype = c.dtype;
  p.sequences = {longest_q, longest_k, c.packed ? cu_seqlens_q_.data() : nullptr,
                 c.packed ? cu_seqlens_k_.data() : nullptr, c.seqused_k.empty() ? nullptr : this->c.seqused_k.data()};
  p.q_tiles = sage::make_tile_space(longest_q, cu_seqlens_q_.back(), c.packed, batch, kQTileRows);
  p.k_tiles = sage::make_tile_space(longest_k, cu_seqlens_k_.back(), c.packed, batch, kKTileRows);
  p.batch = batch;
  p.num_heads_q = c.num_heads_q;
  p.num_heads_kv = c.num_heads_kv;
  p.head_dim = c.head_dim;
  p.total_q = c.packed ? cu_seqlens_q_.back() : 0;
  p.softmax_scale = c.softmax_scale;
  p.order = c.order;
  p.qk = c.qk;
  p.granularity = c.granularity;
  p.smooth_k = c.smooth_k;
  p.smooth_q = c.smooth_q;
  p.hadamard = c.hadamard;
  p.v_format = c.v_format;
  p.v_max = c.v_max;
  p.stats_chunks = c.stats_chunks;

  int64_t const tiles_q = c.num_heads_q * p.q_tiles.per_head, tiles_k = c.num_heads_kv * p.k_tiles.per_head,
                channels = int64_t{batch} * c.num_heads_kv * padded;
  constexpr int64_t kGuard = 64;  // elements behind a buffer
  auto const allocate = [](auto& buffer, int64_t count) {
    buffer.resize(static_cast<size_t>(count + kGuard));
    std::memset(buffer.data(), kUntouched, buffer.size() * sizeof buffer[0]);
    return buffer.data();
  };
  bool const nvfp4 = c.qk == QkFormat::kNvfp4;
  int const k_plane = sage::nvfp4_bytes(kKTileRows, padded);
  p.q_out = allocate(q_out, tiles_q * (nvfp4 ? sage::nvfp4_bytes(kQTileRows, padded)
                                             : sage::q_tile_bytes(c.qk == QkFormat::kInt8 ? 8 : 4, padded)));
  p.k_out = allocate(k_out, tiles_k * (nvfp4 ? k_plane * (c.smooth_q ? 2 : 1) : sage::k_tile_bytes(padded)));
  p.q_scale = allocate(q_scale, tiles_q * sage::kQScalesPerTile);
  p.k_scale = allocate(k_scale, tiles_k * sage::kKScalesPerTile);
  if (c.smooth_k) {
    p.k_sum = allocate(k_sum_, channels * c.stats_chunks);
    p.seqlens_k = allocate(seqlens_k_, batch);
    if (c.lse) p.lse_shift = allocate(lse_shift, c.num_heads_q * (c.packed ? p.total_q : batch * longest_q));
  }
  if (c.smooth_q) {
    p.q_mean = allocate(q_mean, tiles_q * (nvfp4 ? sage::q_mean_nvfp4_bytes(padded) : 2 * padded));
    if (!nvfp4) p.q_mean_scale = allocate(q_mean_scale, tiles_q);
  }
  if (c.v_format == VFormat::kNvfp4) {
    p.v_out = allocate(v_out, tiles_k * sage::nvfp4_bytes(kKTileRows, padded));
  } else if (v_bytes()) {
    p.v_out = allocate(v_out, tiles_k * kKTileRows * padded * v_bytes());
  }
  if (scales_v()) {
    p.v_amax = allocate(v_amax_, channels * c.stats_chunks);
    p.v_scale = allocate(v_scale, channels);
  }
  if (c.smooth_v) {
    p.v_sum = allocate(v_sum_, channels * c.stats_chunks);
    p.v_low = allocate(v_low_, channels * c.stats_chunks);
    p.v_mean = allocate(v_mean, channels);
  }
  p.fold_slots = kFoldSlots;
  p.fold_busy = allocate(fold_busy, kFoldSlots);
}

Case random_shape(std::string const& name, std::mt19937& random) {
  auto const any = [&](std::initializer_list<int> values) { return *(values.begin() + random() % values.size()); };
  Case c{.name = name};
  c.dtype = any({0, 1}) ? DType::kBFloat16 : DType::kFloat16;
  c.data = static_cast<Data>(any({0, 0, 0, 0, 1, 2, 3}));
  c.head_dim = any({0, 0, 1 + static_cast<int>(random() % 256), 8 * (1 + static_cast<int>(random() % 32))});
  c.odd = any({0, 1});
  c.packed = any({0, 1});
  int const batch = 1 + random() % 3;
  auto const length = [&] { return any({0, 1, 63, 64, 65, 127, 128, 129, static_cast<int>(random() % 300)}); };
  c.seqlens_q = std::vector<int32_t>(batch, length());
  c.seqlens_k = std::vector<int32_t>(batch, length());
  for (int b = 1; b < batch && c.packed; ++b) {
    c.seqlens_q[b] = length();
    c.seqlens_k[b] = length();
  }
  if (any({0, 1})) {
    for (int32_t n : c.seqlens_k) c.seqused_k.push_back(static_cast<int>(random() % (n + 1)));
  }
  c.num_heads_kv = 1 + random() % 2;
  c.num_heads_q = c.num_heads_kv * (1 + random() % 2);
  c.stats_chunks = any({1, 2, 5, 16});
  c.softmax_scale = any({0, 1}) ? .125f : -1.7f;
  return c;
}

void Total::add(std::string const& name, std::string const& failure) {
  ++cases;
  failures += !failure.empty();
  std::printf("%s: %s%s\n", name.c_str(), failure.empty() ? "passed" : "FAILED: ", failure.c_str());
  std::fflush(stdout);  // the next kernel may crash
}

void Total::add(Case c, Kernels const& kernels, std::string (*check)(Problem const&)) {
  c.head_dim = c.head_dim == 0 ? kernels.head_dim : std::min(c.head_dim, kernels.head_dim);
  Problem problem(c, kernels);
  std::string const error = problem.run();
  add(c.name + ", head_dim " + std::to_string(c.head_dim) + " of " + std::to_string(kernels.head_dim),
      error.empty() ? check(problem) : error);
}

int Program::run(int count, char** arguments) const {
  bool const quick = count == 2 && !std::strcmp(arguments[1], "--quick");
  if (count > 1 && !quick) {
    std::fprintf(stderr, "usage: %s [--quick]\n", arguments[0]);
    return 2;
  }
  Total total;
  if (!quick || format_is_quick) total.add(format, check_format());
  std::vector<Case> all = cases;
  for (int seed = 0; seed < (quick ? 5 : 60); ++seed) all.push_back(random_case(seed));
  for (Kernels const& with : kernels) {
    for (Case const& c : all) total.add(c, with, check);
  }
  std::printf("%s: %d of %d cases failed\n", name, total.failures, total.cases);
  return total.failures ? 1 : 0;
}

void Problem::fill() {
  std::mt19937 generator(std::accumulate(c.name.begin(), c.name.end(), 1u,
                                         [](uint32_t x, char y) { return x * 31 + static_cast<unsigned char>(y); }));
  std::normal_distribution<float> normal;
  double const greatest = c.dtype == DType::kFloat16 ? 60000. : 1e36, least = c.dtype == DType::kFloat16 ? 1e-7 : 1e-36;
  auto const fill = [&](Input const& x, std::vector<int32_t> const& lengths, std::vector<int32_t> const& used,
                        std::vector<int32_t> const& cu_seqlens, int heads, int kind) {
    for (int b = 0; b < static_cast<int>(lengths.size()); ++b) {
      for (int h = 0; h < heads; ++h) {
        std::vector<float> means(c.head_dim);
        int const length = used.empty() ? lengths[b] : used[b];  // beyond it, NaN
        for (int i = 0; i < length; ++i) {
          if (i % kQTileRows == 0 && (i == 0 || kind == 0)) {
            for (float& mean : means) mean = 4.f * normal(generator);
          }
          uint16_t* const row = x.row(c.packed ? 0 : b, h, c.packed ? cu_seqlens[b] + i : i);
          for (int d = 0; d < c.head_dim; ++d) {
            float y = normal(generator) + means[d];
            if (c.data == Data::kZeros && (kind < 2 || d == 1)) y = 0.f;
            if (c.data == Data::kZeros && kind == 2 && d == 2) y = 3.f;
            if (c.data == Data::kExtreme) {
              y = static_cast<float>(std::ldexp(d % 2 ? greatest : least, -(d / 2 + i) % 5)) * (i % 3 ? -1.f : 1.f);
            }
            if (c.data == Data::kTiny) y *= c.dtype == DType::kFloat16 ? 1e-5f : 1e-30f;
            if (c.data == Data::kHuge) y *= c.dtype == DType::kFloat16 ? 1e3f : 1e30f;
            if (c.data == Data::kOutliers && i % 37 == 5 && d % 11 == 3) y = i % 2 ? NAN : -INFINITY;
            row[d] = from_float(y, c.dtype);
          }
        }
      }
    }
  };
  fill(q_, c.seqlens_q, {}, cu_seqlens_q_, c.num_heads_q, 0);
  fill(k_, c.seqlens_k, c.seqused_k, cu_seqlens_k_, c.num_heads_kv, 1);
  fill(v_, c.seqlens_k, c.seqused_k, cu_seqlens_k_, c.num_heads_kv, 2);
}

std::string Problem::run() {
  bool const needs_stats = c.smooth_k || scales_v();
  if (needs_stats) {
    if (sage::Status const status = kernels.kv_stats.launch(p, nullptr); !status.ok()) return status.message;
  }
  if (sage::Status const status = kernels.quantize.launch(p, nullptr); !status.ok()) return status.message;
  return "";
}

float Problem::element(Input const& x, std::vector<int32_t> const& cu_seqlens, int b, int head, int64_t row,
                       int d) const {
  return to_float(x.row(c.packed ? 0 : b, head, c.packed ? cu_seqlens[b] + row : row)[d], c.dtype);
}

int64_t Problem::q_tile(int b, int head, int64_t tile) const {
  return head * p.q_tiles.per_head + sage::first_tile<kQTileRows>(p.q_tiles, b, cu_seqlens_q_[b]) + tile;
}
int64_t Problem::k_tile(int b, int head, int64_t tile) const {
  return head * p.k_tiles.per_head + sage::first_tile<kKTileRows>(p.k_tiles, b, cu_seqlens_k_[b]) + tile;
}

float Problem::lse_shift_of(int b, int head, int64_t row) const {
  return c.packed ? lse_shift[head * p.total_q + cu_seqlens_q_[b] + row]
                  : lse_shift[(int64_t{b} * c.num_heads_q + head) * c.seqlens_q[0] + row];
}

}  // namespace quantizer_test
