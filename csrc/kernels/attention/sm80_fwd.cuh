// Forward attention on mma.sync: INT8 Q K^T; P V in fp16, bf16 or INT8 (SageAttention, sections 4.2 to 4.4). sm_80 on.
//
// A block computes one tile of 128 query rows of one head; each warp owns 16 or 32 of them and walks all tiles of 64
// keys. K and V stream through two stages of shared memory by cp.async, with one barrier per tile. Q waits in shared
// memory in fragment order, each lane reading only what it wrote.
//
// The maximum of a row is allowed to be stale: P = 2^(score - max) is taken with the maximum of an earlier tile, and
// the sum of P proves that this was good enough, being neither infinite nor beyond what P's format takes. Else the
// scores of the tile are computed again with the exact maximum. So no maximum is searched for in most tiles.
#pragma once
#include <cfloat>
#include <cstdint>

#include "arch/math.h"
#include "arch/simt.h"
#include "arch/tensor_ops.h"
#include "attention/params.h"
#include "common/mask.h"
#include "common/numerics.h"
#include "common/quant_format.h"
#include "tile/epilogue.h"
#include "tile/mask_scores.h"
#include "tile/pv_accumulator.h"

namespace sage::sm80 {

// Operands and accumulators of P V.
enum class Pv { kF16, kBf16, kF16AccF16, kF16AccF16F32, kInt8 };

template <int kHeadDim, int kMTiles, Pv kPv>
struct PvAccum;
template <int kHeadDim, int kMTiles>
struct PvAccum<kHeadDim, kMTiles, Pv::kF16> : tile::PvAccumF32<kHeadDim, kMTiles, false> {};
template <int kHeadDim, int kMTiles>
struct PvAccum<kHeadDim, kMTiles, Pv::kBf16> : tile::PvAccumF32<kHeadDim, kMTiles, true> {};
template <int kHeadDim, int kMTiles>
struct PvAccum<kHeadDim, kMTiles, Pv::kF16AccF16> : tile::PvAccumF16<kHeadDim, kMTiles> {};
template <int kHeadDim, int kMTiles>
struct PvAccum<kHeadDim, kMTiles, Pv::kF16AccF16F32> : tile::PvAccumF16F32<kHeadDim, kMTiles> {};
template <int kHeadDim, int kMTiles>
struct PvAccum<kHeadDim, kMTiles, Pv::kInt8> : tile::PvAccumInt8<kHeadDim, kMTiles> {};

template <int kHeadDim, Pv kPv>
struct AttnFwd {
  static constexpr int kBlockM = kQTileRows, kBlockN = kKTileRows;
  static constexpr int kMTiles = kHeadDim == 256 ? 1 : 2;  // 16-row tiles of a warp: what its registers hold of O
  static constexpr int kWarps = kBlockM / 16 / kMTiles, kThreads = 32 * kWarps;
  static constexpr int kMinBlocksPerSm = kHeadDim == 256 ? 1 : 2;
  static constexpr int kKSteps = kHeadDim / 32;  // of Q K^T
  using Accum = PvAccum<kHeadDim, kMTiles, kPv>;
  using Params = AttnParams;

  static constexpr int kKBytes = kBlockN * kHeadDim, kVBytes = kKBytes * Accum::kElementBytes;
  static constexpr int kChunk = kThreads * 16;  // what all threads copy at once
  struct Stage {
    char k[kKBytes], v[kVBytes];
    float k_scale[kKScalesPerTile];
  };
  // Where this block works. In shared memory, because registers are what this kernel has least of.
  struct Place {
    Sequence sequence;
    int64_t row;                       // of the sequence, of the block's first query
    char const *k, *v;                 // the sequence's first tile of K and of INT8 V, or first row of 16-bit V
    float const* k_scale;              // of the sequence's first tile
    int64_t v_stride;                  // bytes of a row of 16-bit V
    uint32_t v_whole;                  // tiles of 16-bit V that exist whole, with all kHeadDim channels
    uint32_t first_n, last_n;          // the tiles of keys that some row sees
    uint32_t whole_first, whole_last;  // those that every row sees whole
    int32_t batch, head, head_kv;

    SAGE_DEVICE Mask visible(Params const& p) const {
      return {sequence.seqlen_q, sequence.seqlen_k, p.causal, p.window_left, p.window_right};
    }
  };
  struct SharedStorage {
    alignas(1024) char q[kBlockM * kHeadDim];  // fragment i of thread t at i * kChunk + t * 16
    Stage stages[2];
    // What one thread reads again for every tile; 16 bytes, so that its address is that of the thread's fragments.
    struct alignas(16) Thread {
      float q_scale;  // of its rows
      char const* v;  // what it copies of the sequence's first tile of V
    } threads[kThreads];
    Place place;
  };

  // The accumulators of Q K^T start at the bits of 1.5 * 2^23, so that they are floats, kBias too large, without a
  // conversion: |q . k| <= 127 * 127 * 256 < 2^22.
  static constexpr uint32_t kSeed = 0x4B400000u;
  static constexpr float kBias = 12582912.f;
  // Up to this scale the bias is part of a row's offset, kBias * scale + maximum, whose rounding is worth up to 1.5
  // steps of q . k and changes a row's P by up to 2^0.2. With larger steps P would overflow, or vanish: there the bias
  // goes first, as it does for masks.
  static constexpr float kMaxBiasedScale = .125f;

  using Scores = uint32_t[kMTiles][kBlockN / 8][4];  // accumulator fragments
  using PerRow = float[kMTiles][2];                  // rows lane / 4 and lane / 4 + 8 of each 16-row tile

  static int64_t num_blocks(AttnParams const& p) { return p.q_tiles.per_sequence * p.num_heads_q * p.batch; }

  SAGE_DEVICE void operator()(Params const& p, char* smem) const {
    SharedStorage& shared = *reinterpret_cast<SharedStorage*>(smem);
    Place const& place = shared.place;
    int const thread = arch::thread_index();
    if (thread == 0) shared.place = find_place(p);
    arch::sync_block();  // place is visible
    if (place.row >= place.sequence.seqlen_q) return;

    // Q, and the first tile of K and V.
    int64_t const q_tile = place.head * p.q_tiles.per_head +
                           first_tile<kBlockM>(p.q_tiles, place.batch, place.sequence.row_q) + place.row / kBlockM;
    char* const mine = smem + thread * 16;
    SAGE_UNROLL for (int i = 0; i < kMTiles * kKSteps; ++i) {
      arch::cp_async(mine + i * kChunk, p.q + q_tile * kBlockM * kHeadDim +
                                            (arch::warp_index() * kMTiles * kKSteps + i) * 512 +
                                            arch::lane_index() * 16);
    }
    shared.threads[thread] = {
        p.q_scale[q_tile * kQScalesPerTile + q_scale_index(arch::warp_index() * 16 * kMTiles + arch::lane_index() / 4)],
        place.v +
            (Accum::kElementBytes == 1 ? thread * 16 : v16_row(thread) * place.v_stride + v16_channel(thread) * 2)};
    uint32_t n = place.first_n;
    if (n < place.last_n) copy_tile(p, shared, n);
    arch::cp_async_fence();

    // The other stage is free until the loop's first barrier.
    uint32_t seed[4];
    SAGE_UNROLL for (int i = 0; i < 4; ++i)
      seed[i] = arch::opaque(kSeed, shared.stages[(n + 1) % 2].k + thread * 16);

    Accum o;
    PerRow row_max, exp_sum, p_sum;  // the sums are this lane's share
    SAGE_UNROLL for (int i = 0; i < 2 * kMTiles; ++i) {
      row_max[i / 2][i % 2] = -FLT_MAX;  // below every finite score, and its difference from -inf is -inf
      exp_sum[i / 2][i % 2] = p_sum[i / 2][i % 2] = 0.f;
    }

    SAGE_NO_UNROLL
    for (; n < place.last_n; ++n) {
      arch::cp_async_wait<0>();
      arch::sync_block();  // tile n is visible to every warp, and no warp still reads the other stage
      if (n + 1 < place.last_n) copy_tile(p, shared, n + 1);
      arch::cp_async_fence();
      Stage const& tile = shared.stages[n % 2];
      uint32_t const lane = arch::pinned(arch::lane_index());
      float const scale = shared.threads[thread].q_scale * tile.k_scale[lane % 4];

      typename Accum::Probabilities probabilities;
      PerRow tile_max, tile_sum;
      for (bool exact = Accum::kNeedsStepMax || n == place.first_n;; exact = true) {
        Scores s;
        multiply_qk(s, mine, tile.k + lane / 8 % 2 * 1024 + (lane / 16 * 8 + lane % 8) * 16, seed);
        float unit = scale, bias = kBias;  // score = (s - bias) * unit
        if (n < place.whole_first || n >= place.whole_last || p.mask.data || scale > kMaxBiasedScale) {
          tile::mask_scores(s, unit, bias, place.visible(p), p.mask, place.batch, place.head,
                            place.row + arch::warp_index() * 16 * kMTiles, int64_t{n} * kBlockN);
          unit = 1.f;
          bias = 0.f;
        }
        if (exact) {
          find_maximum(s, unit, bias, tile_max);
          move_maximum(tile_max, row_max, o, exp_sum, p_sum);
        }
        exponentiate(s, unit, bias, Accum::kNeedsStepMax ? tile_max : row_max, probabilities, tile_sum);
        if (exact) break;
        bool stale = false;  // infinite sums, of rows without a maximum yet, count, and so does NaN
        SAGE_UNROLL for (int i = 0; i < 2 * kMTiles; ++i)
          stale |= !(tile_sum[i / 2][i % 2] <= Accum::kSumLimit);
        if (!arch::any(stale)) break;
      }
      PerRow fold;  // from the tile's maximum to the row's
      SAGE_UNROLL for (int i = 0; i < 2 * kMTiles; ++i) {
        float& sum = exp_sum[i / 2][i % 2];
        if constexpr (Accum::kNeedsStepMax) {
          float const f = fold[i / 2][i % 2] = arch::exp2_approx(tile_max[i / 2][i % 2] - row_max[i / 2][i % 2]);
          sum = fmaf(tile_sum[i / 2][i % 2], f, sum);
          p_sum[i / 2][i % 2] = fmaf(static_cast<float>(probabilities.sum[i / 2][i % 2]), f, p_sum[i / 2][i % 2]);
        } else {
          sum += tile_sum[i / 2][i % 2];
        }
      }
      arch::sync_warp();
      o.add(probabilities, tile.v + lane / 8 * 1024 + lane % 8 * 16, fold);
    }
    arch::cp_async_wait<0>();  // of Q, if there was no tile of keys
    store(p, place, o, row_max, exp_sum, p_sum);
  }

 private:
  SAGE_DEVICE static Place find_place(Params const& p) {
    // Heads of a sequence are neighbours, so that blocks that run together share K and V; under a causal mask the last
    // rows have the most keys and come first.
    uint32_t const index = arch::block_index(), q_tiles = static_cast<uint32_t>(p.q_tiles.per_sequence);
    Place x;
    x.row = int64_t{q_tiles - 1 - index % q_tiles} * kBlockM;
    x.head = static_cast<int32_t>(index / q_tiles % p.num_heads_q);
    x.batch = static_cast<int32_t>(index / q_tiles / p.num_heads_q);
    x.head_kv = x.head / (p.num_heads_q / p.num_heads_kv);
    Sequence const s = x.sequence = p.sequences[x.batch];
    int64_t const k_tile = x.head_kv * p.k_tiles.per_head + first_tile<kBlockN>(p.k_tiles, x.batch, s.row_k);
    x.k = reinterpret_cast<char const*>(p.k) + k_tile * kKBytes;
    x.k_scale = p.k_scale + k_tile * kKScalesPerTile;
    if (p.v_in_tiles) {
      x.v = static_cast<char const*>(p.v.data) + k_tile * kVBytes;
      x.v_stride = kHeadDim * 2;
      x.v_whole = static_cast<uint32_t>(ceil_div(s.seqlen_k, kBlockN));
    } else {
      x.v = static_cast<char const*>(p.v.data) +
            (x.batch * p.v.stride_batch + x.head_kv * p.v.stride_head + s.row_k * p.v.stride_seq) * 2;
      x.v_stride = p.v.stride_seq * 2;
      x.v_whole = p.head_dim == kHeadDim ? static_cast<uint32_t>(s.seqlen_k / kBlockN) : 0;
    }
    Mask const visible = x.visible(p);
    int64_t const last_row = x.row + kBlockM < s.seqlen_q ? x.row + kBlockM - 1 : s.seqlen_q - 1;
    x.first_n = static_cast<uint32_t>(visible.col_begin(x.row) / kBlockN);
    x.last_n = static_cast<uint32_t>(ceil_div(visible.col_end(last_row), kBlockN));
    x.whole_first = static_cast<uint32_t>(ceil_div(visible.col_begin(last_row), kBlockN));
    x.whole_last = static_cast<uint32_t>(visible.col_end(x.row) / kBlockN);
    return x;
  }

  // What a thread copies of 16-bit V, in the order of tile::load_v16: this row and channel, and others a constant away.
  SAGE_DEVICE static uint32_t v16_row(uint32_t thread) { return thread / 64 * 8 + thread % 8; }
  SAGE_DEVICE static uint32_t v16_channel(uint32_t thread) { return thread / 8 % 8 * 8; }

  // Copies tile n of K, its scales and V to its stage.
  SAGE_DEVICE static void copy_tile(Params const& p, SharedStorage& shared, uint32_t n) {
    // Pinned, so that addresses are computed anew for every tile instead of being kept in registers. Shared memory is
    // read before the first copy, which the compiler takes for a write to it.
    uint32_t const thread = arch::pinned(arch::thread_index());
    Stage& stage = shared.stages[n % 2];
    char* const dst = stage.k + thread * 16;
    char const* const k = shared.place.k + int64_t{n * (kKBytes / 16) + thread} * 16;  // 32 bits: kMaxSeqlen
    float const* const k_scale = shared.place.k_scale;
    char const* const v = shared.threads[thread].v;
    int64_t const v_stride = shared.place.v_stride, seqlen_k = shared.place.sequence.seqlen_k;
    bool const whole = n < shared.place.v_whole;
    if (thread == 0) arch::cp_async(reinterpret_cast<char*>(stage.k_scale), k_scale + n * kKScalesPerTile);
    SAGE_UNROLL for (int i = 0; i < kKBytes / kChunk; ++i)
      arch::cp_async(dst + i * kChunk, k + i * kChunk);
    if constexpr (Accum::kElementBytes == 1) {
      char const* const src = v + int64_t{n} * kVBytes;
      SAGE_UNROLL for (int i = 0; i < kVBytes / kChunk; ++i)
        arch::cp_async(dst + kKBytes + i * kChunk, src + i * kChunk);
    } else {
      constexpr int kRowsAtOnce = kThreads / 8, kCopiesPerPanel = kBlockN / kRowsAtOnce;
      auto const copy = [&](auto const& exists) {
        char const* src = v + n * kBlockN * v_stride;
        SAGE_UNROLL for (int i = 0; i < kCopiesPerPanel; ++i) {
          SAGE_UNROLL for (int c = 0; c < kHeadDim; c += 64) {
            arch::cp_async_zfill(dst + kKBytes + c * (kBlockN * 2) + i * kChunk, src + c * 2,
                                 exists(i * kRowsAtOnce, c));
          }
          src += v_stride * kRowsAtOnce;
        }
      };
      if (whole) {
        copy([](int, int) { return true; });
      } else {
        int const rows = static_cast<int>(seqlen_k - (n * kBlockN + v16_row(thread)));
        int const channels = p.head_dim - static_cast<int>(v16_channel(thread));
        copy([&](int r, int c) { return r < rows && c < channels; });
      }
    }
  }

  // s = kSeed + Q K^T. `q` is this lane's first fragment, `k` its row of the first ldmatrix. One k-step of Q at a time
  // is in registers; the barriers keep the compiler from loading more.
  SAGE_DEVICE static void multiply_qk(Scores& s, char const* q, char const* k, uint32_t const (&seed)[4]) {
    using Op = cute::SM80_16x8x32_S32S8S8S32_TN;
    SAGE_UNROLL for (int step = 0; step < kKSteps; ++step) {
      if (step > 0) arch::sync_warp();
      uint32_t a[kMTiles][4];
      SAGE_UNROLL for (int mt = 0; mt < kMTiles; ++mt) {
        uint4 const fragment = *reinterpret_cast<uint4 const*>(q + (mt * kKSteps + step) * kChunk);
        a[mt][0] = fragment.x;
        a[mt][1] = fragment.y;
        a[mt][2] = fragment.z;
        a[mt][3] = fragment.w;
      }
      SAGE_UNROLL for (int pair = 0; pair < kBlockN / 16; ++pair) {
        if (pair == 2) arch::sync_warp();
        uint32_t b[4];
        arch::ldmatrix<cute::SM75_U32x4_LDSM_N>(b, k + step * 2048 + pair * 256);
        SAGE_UNROLL for (int h = 0; h < 2; ++h) {
          uint32_t const bh[2] = {b[2 * h], b[2 * h + 1]};
          SAGE_UNROLL for (int mt = 0; mt < kMTiles; ++mt) {
            auto& acc = s[mt][2 * pair + h];
            if (step == 0) {
              arch::mma<Op>(acc, a[mt], bh, seed);
            } else {
              arch::mma<Op>(acc, a[mt], bh, acc);
            }
          }
        }
      }
    }
  }

  SAGE_DEVICE static void find_maximum(Scores const& s, float unit, float bias, PerRow& tile_max) {
    SAGE_UNROLL for (int i = 0; i < 2 * kMTiles; ++i) {
      int const mt = i / 2, r = i % 2;
      float x = arch::as_float(s[mt][0][2 * r]), y = arch::as_float(s[mt][0][2 * r + 1]);
      SAGE_UNROLL for (int n = 1; n < kBlockN / 8; ++n) {
        x = fmaxf(x, arch::as_float(s[mt][n][2 * r]));
        y = fmaxf(y, arch::as_float(s[mt][n][2 * r + 1]));
      }
      // Rounded up, so that no score is above it.
      tile_max[mt][r] = fmaxf(tile::max_of_quad(-arch::fma_down(bias - fmaxf(x, y), unit, 0.f)), -FLT_MAX);
    }
  }

  // Takes the maximum of a tile into the rows', and brings what was summed to it.
  SAGE_DEVICE static void move_maximum(PerRow const& tile_max, PerRow& row_max, Accum& o, PerRow& exp_sum,
                                       PerRow& p_sum) {
    PerRow decay;
    bool moved = false;
    SAGE_UNROLL for (int i = 0; i < 2 * kMTiles; ++i) {
      int const mt = i / 2, r = i % 2;
      float const new_max = fmaxf(row_max[mt][r], tile_max[mt][r]);
      decay[mt][r] = arch::exp2_approx(row_max[mt][r] - new_max);
      moved |= row_max[mt][r] != new_max;
      row_max[mt][r] = new_max;
      exp_sum[mt][r] *= decay[mt][r];
      p_sum[mt][r] *= decay[mt][r];
    }
    if (arch::any(moved)) o.scale(decay);
  }

  // P = 2^(score - base), packed, and this lane's share of its sums before P is rounded.
  SAGE_DEVICE static void exponentiate(Scores const& s, float unit, float bias, PerRow const& base,
                                       typename Accum::Probabilities& probabilities, PerRow& sum) {
    SAGE_UNROLL for (int i = 0; i < 2 * kMTiles; ++i) {
      int const mt = i / 2, r = i % 2;
      // Its last place is worth about one step of q . k. Integer P must not exceed 1, or its byte would wrap.
      float const offset =
          Accum::kNeedsStepMax ? arch::fma_down(-bias, unit, -base[mt][r]) : fmaf(-bias, unit, -base[mt][r]);
      sum[mt][r] = 0.f;
      auto element = [&](int n, int e) {
        float const x = arch::exp2_approx(fmaf(arch::as_float(s[mt][n][2 * r + e]), unit, offset));
        sum[mt][r] += x;
        return x;
      };
      SAGE_UNROLL for (int n = 0; n < kBlockN / 8; n += 2) {
        float const p0 = element(n, 0), p1 = element(n, 1), p2 = element(n + 1, 0), p3 = element(n + 1, 1);
        probabilities.set(mt, n, r, p0, p1, p2, p3);
      }
    }
  }

  SAGE_DEVICE static void store(Params const& p, Place const& place, Accum const& o, PerRow const& row_max,
                                PerRow const& exp_sum, PerRow const& p_sum) {
    Sequence const& sequence = place.sequence;
    int const lane = arch::lane_index(), t = lane % 4;
    float const* const v_scale =
        p.v_scale ? p.v_scale + (int64_t{place.batch} * p.num_heads_kv + place.head_kv) * kHeadDim : nullptr;
    SAGE_UNROLL for (int i = 0; i < 2 * kMTiles; ++i) {
      int const mt = i / 2, r = i % 2;
      int64_t const row = place.row + (arch::warp_index() * kMTiles + mt) * 16 + r * 8 + lane / 4;
      float const sum = tile::sum_of_quad(exp_sum[mt][r]);
      // Integer P cannot hold NaN, but the sum before rounding does.
      float const divisor = Accum::kNeedsStepMax ? tile::sum_of_quad(p_sum[mt][r]) + 0.f * sum : sum;
      bool const seen = divisor != 0.f;  // else no key was: out is 0 and lse -inf, even where V or K holds NaN
      float const factor = 1.f / divisor;
      if (row >= sequence.seqlen_q) continue;
      uint16_t* const out = static_cast<uint16_t*>(p.out.data) + place.batch * p.out.stride_batch +
                            place.head * p.out.stride_head + (sequence.row_q + row) * p.out.stride_seq;
      SAGE_UNROLL for (int n = 0; n < kHeadDim / 8; ++n) {
        int const channel = n * 8 + t * 2;
        float x = o.value(mt, n, 2 * r) * factor, y = o.value(mt, n, 2 * r + 1) * factor;
        if (v_scale) {
          x *= v_scale[channel];
          y *= v_scale[channel + 1];
        }
        tile::store_pair(out, channel, p.head_dim, p.out_in_pairs, p.out_dtype, seen ? x : 0.f, seen ? y : 0.f);
      }
      if (p.lse && t == 0) {
        int64_t const index = p.sequences.cu_seqlens_q
                                  ? place.head * p.total_q + sequence.row_q + row
                                  : (int64_t{place.batch} * p.num_heads_q + place.head) * sequence.seqlen_q + row;
        float const shift = p.lse_shift && seen ? p.lse_shift[index] : 0.f;
        p.lse[index] = tile::log_sum_exp(row_max[mt][r], sum) + shift;
      }
    }
  }
};

}  // namespace sage::sm80
