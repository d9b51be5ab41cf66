// Forward attention on mma.sync: the loop body of the families sm80, sm89 and sm120, which say what Q K^T and P V are.
//
// A block computes one tile of 128 query rows of one head; each warp owns 16 or 32 of them and walks all tiles of 64
// keys, first to last or last to first. K and V stream through two stages of shared memory by cp.async, with one
// barrier per tile. Q waits in shared memory in fragment order, each lane reading only what it wrote.
//
// P = 2^(score - maximum of the row). For 16-bit P it may be stale, that of an earlier tile: the sum of P proves that
// this was good enough, being neither infinite nor beyond what P's format takes; else the scores of the tile are
// computed again with the exact maximum. So no maximum is searched for in most tiles. 8-bit P has no range for that.
// Sums move with a maximum only in the tiles in which one of a warp's rows has a new one.
//
// Accumulators that stay accurate for some tiles only are folded into a slot of global memory (attention/params.h).
#pragma once
#include <cfloat>
#include <cstdint>
#include <type_traits>

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
#include "tile/q_mean.h"
#include "tile/qk.h"

namespace sage {

// 16-row tiles of a warp: what its registers hold of O.
template <int kHeadDim>
constexpr int kMTilesOfWarp = kHeadDim == 256 ? 1 : 2;

// Qk is of tile/qk.h, Accum of tile/pv_accumulator.h.
template <int kHeadDim, class Qk, class Accum>
struct MmaSyncFwd {
  static constexpr int kBlockM = kQTileRows, kBlockN = kKTileRows;
  static constexpr int kMTiles = kMTilesOfWarp<kHeadDim>;
  static constexpr int kWarps = kBlockM / 16 / kMTiles, kThreads = 32 * kWarps;
  static constexpr int kMinBlocksPerSm = kHeadDim == 256 ? 1 : 2;
  using Params = AttnParams;

  static constexpr int kKBytes = Qk::kKBytes, kVBytes = kBlockN * kHeadDim * Accum::kElementBytes;
  static constexpr bool kFp8 = Accum::kMaximum == tile::Maximum::kRow;  // P
  static constexpr bool kV8 = Accum::kElementBytes == 1;
  static constexpr int kChunk = kThreads * 16;  // what all threads copy at once
  struct Stage {
    char k[kKBytes], v[kVBytes];
    float k_scale[kKScalesPerTile];
  };
  // Where this block works. In shared memory, because registers are what this kernel has least of.
  struct Place {
    Sequence sequence;
    int64_t row;           // of the sequence, of the block's first query
    int64_t q_tile;        // in the buffers of Q
    char const *k, *v;     // the sequence's first tile of K and of INT8 V, or first row of 16-bit V
    float const* k_scale;  // of the sequence's first tile
    float* fold;           // the slot for what accumulators cannot hold (params.h), if this block needs one
    int64_t v_stride;      // bytes of a row of 16-bit V
    // Tiles of 16-bit V that exist whole, with all kHeadDim channels. Aligned, so that one load has the next three,
    // too.
    alignas(kV8 ? 4 : 16) uint32_t v_whole;
    uint32_t begin, end, step;         // the tiles of keys that some row sees, in the order in which they are visited
    uint32_t whole_first, whole_last;  // those that every row sees whole
    int32_t batch, head, head_kv;
    float max_offset;  // log2_p_max of FP8 P

    SAGE_DEVICE Mask visible(Params const& p) const {
      return {sequence.seqlen_q, sequence.seqlen_k, p.causal, p.window_left, p.window_right};
    }
  };
  // What one thread reads again for every tile. With 16-bit V 16 bytes, so that its address is that of the thread's
  // fragments; with 8-bit V there is no room for that on sm_89.
  struct alignas(16) Thread16 {
    float q_scale;  // of its rows
    char const* v;  // what it copies of the sequence's first tile of V
  };
  struct Thread8 {
    float q_scale;
  };
  using Thread = std::conditional_t<kV8, Thread8, Thread16>;
  struct SharedStorage {
    alignas(1024) char q[Qk::kQBytes];  // fragment i of thread t at i * kChunk + t * 16
    Stage stages[2];
    Thread threads[kThreads];
    float q_mean_k[kBlockN];  // smooth_q: the base-2 scores of q_mean, for the tile of keys
    Place place;
  };

  // Up to this scale the bias is part of a row's offset, kBias * scale + maximum, whose rounding is worth up to 1.5
  // steps of q . k and changes a row's P by up to 2^0.2, e4m3 P by up to 2^.016: that a row's largest P becomes p_max
  // and not the next e4m3 value is what bounds fp16 accumulators. With larger steps P would overflow, or vanish: there
  // the bias goes first, as it does for masks.
  static constexpr float kMaxBiasedScale = kFp8 ? .03125f : .125f;

  using Scores = typename Qk::Scores;
  static constexpr int kFragments = kMTiles * kHeadDim / 8;  // of O
  static constexpr bool kTileMax = Accum::kMaximum == tile::Maximum::kTile;
  static constexpr bool kExact = Accum::kMaximum != tile::Maximum::kStale;
  static constexpr bool kSumsP = Accum::kDivisor != tile::Divisor::kAccumulated;

  using PerRow = float[kMTiles][2];  // rows lane / 4 and lane / 4 + 8 of each 16-row tile

  static int64_t num_blocks(AttnParams const& p) { return p.q_tiles.per_sequence * p.num_heads_q * p.batch; }

  SAGE_DEVICE void operator()(Params const& p, char* smem) const {
    static_assert(!kV8 || kMinBlocksPerSm * (sizeof(SharedStorage) + 1024) <= 100 * 1024, "sm_89 has 100 KiB per SM");
    SharedStorage& shared = *reinterpret_cast<SharedStorage*>(smem);
    Place const& place = shared.place;
    int const thread = arch::thread_index();
    if (thread == 0) {
      shared.place = find_place(p);
      if constexpr (Accum::kFolds) shared.place.fold = take_fold_slot(p, place);
    }
    arch::sync_block();  // place is visible
    if (place.row >= place.sequence.seqlen_q) return;

    // Q, and the first tile of K and V.
    int64_t const q_tile = place.q_tile;
    char* const mine = smem + thread * 16;
    SAGE_UNROLL for (int i = 0; i < Qk::kFragments; ++i) {
      arch::cp_async(mine + i * kChunk, p.q + q_tile * Qk::kQBytes + (arch::warp_index() * Qk::kFragments + i) * 512 +
                                            arch::lane_index() * 16);
    }
    Thread& own = shared.threads[thread];
    own.q_scale =
        p.q_scale[q_tile * kQScalesPerTile + q_scale_index(arch::warp_index() * 16 * kMTiles + arch::lane_index() / 4)];
    if constexpr (!kV8) own.v = place.v + v16_row(thread) * place.v_stride + v16_channel(thread) * 2;
    uint32_t n = place.begin;
    if (n != place.end) copy_tile(p, shared, n);
    arch::cp_async_fence();

    // The other stage is free until the loop's first barrier.
    uint32_t seed[4];
    SAGE_UNROLL for (int i = 0; i < 4; ++i)
      seed[i] = arch::opaque(tile::kSeed, shared.stages[(n + 1) % 2].k + thread * 16);

    Accum o;
    PerRow row_max, exp_sum, p_sum;  // the sums are this lane's share
    SAGE_UNROLL for (int i = 0; i < 2 * kMTiles; ++i) {
      row_max[i / 2][i % 2] = -FLT_MAX;  // below every finite score, and its difference from -inf is -inf
      exp_sum[i / 2][i % 2] = p_sum[i / 2][i % 2] = 0.f;
    }

    uint32_t next_fold = place.end;
    if constexpr (Accum::kFolds) {
      if (place.fold) next_fold = n + place.step * (p.fold_every - 1);
    }

    SAGE_NO_UNROLL
    for (; n != place.end; n += place.step) {
      arch::cp_async_wait<0>();
      arch::sync_block();  // tile n is visible to every warp, and no warp still reads the other stage
      if (n + place.step != place.end) copy_tile(p, shared, n + place.step);
      arch::cp_async_fence();
      Stage const& tile = shared.stages[n % 2];
      // Computed for every tile, as it is not worth a register; but those of integer P V have one left for it.
      uint32_t const place_k = Qk::place(kTileMax ? arch::lane_index() : arch::pinned(arch::lane_index()));
      float const scale = shared.threads[thread].q_scale * tile.k_scale[place_k / 16 % 4];

      bool const smooth_q = Qk::kServesSmoothQ && p.q_mean;
      if constexpr (Qk::kServesSmoothQ) {
        if (smooth_q) {
          // No warp still reads the row of the tile before: the barrier above is between.
          tile::multiply_q_mean<Qk, kWarps>(shared.q_mean_k, p.q_mean + place.q_tile * q_mean_bytes(kHeadDim),
                                            p.q_mean_scale[place.q_tile], tile.k, tile.k_scale);
          arch::sync_block();  // the row is visible to every warp
        }
      }

      typename Accum::Probabilities probabilities;
      PerRow tile_max, tile_sum;
      for (bool exact = kExact || n == place.begin;; exact = true) {
        Scores s;
        Qk::template multiply<kChunk>(s, mine, tile.k + place_k, seed);
        float unit = scale, bias = tile::kBias;  // score = (s - bias) * unit
        if (smooth_q) {
          tile::add_q_mean(s, unit, bias, shared.q_mean_k);
          unit = 1.f;
          bias = 0.f;
        }
        if (n < place.whole_first || n >= place.whole_last || p.mask.data || (!smooth_q && scale > kMaxBiasedScale)) {
          tile::mask_scores<false>(s, unit, bias, place.visible(p), p.mask, place.batch, place.head,
                                   place.row + arch::warp_index() * 16 * kMTiles, int64_t{n} * kBlockN);
          unit = 1.f;
          bias = 0.f;
        }
        if (exact) {
          find_maximum(s, unit, bias, kTileMax ? 0.f : place.max_offset, tile_max);
          move_maximum(tile_max, row_max, o, exp_sum, p_sum);
        }
        exponentiate(s, unit, bias, kTileMax ? tile_max : row_max, probabilities, tile_sum);
        if (exact) break;
        if constexpr (!kExact) {
          bool stale = false;  // infinite sums, of rows without a maximum yet, count, and so does NaN
          SAGE_UNROLL for (int i = 0; i < 2 * kMTiles; ++i)
            stale |= !(tile_sum[i / 2][i % 2] <= Accum::kSumLimit);
          if (!arch::any(stale)) break;
        }
      }
      PerRow factor;  // from the tile's maximum to the row's
      SAGE_UNROLL for (int i = 0; i < 2 * kMTiles; ++i) {
        float& sum = exp_sum[i / 2][i % 2];
        if constexpr (kTileMax) {
          float const f = factor[i / 2][i % 2] = arch::exp2_approx(tile_max[i / 2][i % 2] - row_max[i / 2][i % 2]);
          sum = fmaf(tile_sum[i / 2][i % 2], f, sum);
          p_sum[i / 2][i % 2] = fmaf(static_cast<float>(probabilities.sum[i / 2][i % 2]), f, p_sum[i / 2][i % 2]);
        } else if constexpr (kSumsP) {
          sum += tile_sum[i / 2][i % 2];
        }
      }
      arch::sync_warp();
      o.add(probabilities, tile.v + place_v(place_k), factor);
      if constexpr (Accum::kFolds) {
        if (n == next_fold) {
          fold(place, o, row_max, n == place.begin + place.step * (p.fold_every - 1));
          next_fold += place.step * p.fold_every;
        }
      }
    }
    arch::cp_async_wait<0>();  // of Q, if there was no tile of keys
    if constexpr (Accum::kFolds) {
      if (place.fold) fold(place, o, row_max, false);
    }
    store(p, place, o, row_max, exp_sum, p_sum);
    if constexpr (Accum::kFolds) {
      if (place.fold) give_fold_slot_back(p, place);
    }
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
    x.q_tile = p.first_q_tile(x.batch, x.head, s) + x.row / kBlockM;
    int64_t const k_tile = p.first_k_tile(x.batch, x.head_kv, s);
    x.k = p.k + k_tile * k_tile_bytes(kHeadDim);
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
    uint32_t const first = static_cast<uint32_t>(visible.col_begin(x.row) / kBlockN);
    uint32_t last = static_cast<uint32_t>(ceil_div(visible.col_end(last_row), kBlockN));
    last = last < first ? first : last;
    x.begin = p.reverse_keys ? last - 1 : first;
    x.end = p.reverse_keys ? first - 1 : last;
    x.step = p.reverse_keys ? -1 : 1;
    x.whole_first = static_cast<uint32_t>(ceil_div(visible.col_begin(last_row), kBlockN));
    x.whole_last = static_cast<uint32_t>(visible.col_end(x.row) / kBlockN);
    x.max_offset = kFp8 ? p.log2_p_max : 0.f;
    x.fold = nullptr;
    return x;
  }

  // A slot that no other block has, or null if this one sees few enough keys.
  SAGE_DEVICE static float* take_fold_slot(Params const& p, Place const& place) {
    uint32_t const tiles = (place.end - place.begin) * place.step;
    if (tiles <= static_cast<uint32_t>(p.fold_every) || place.row >= place.sequence.seqlen_q) return nullptr;
    uint32_t slot = arch::block_index() % p.fold_slots;
    while (arch::exchange(&p.fold_busy[slot], 1)) {
      slot = slot + 1 == static_cast<uint32_t>(p.fold_slots) ? 0 : slot + 1;
      arch::pause();
    }
    arch::fence();  // the slot's last owner has written what it wrote
    return p.fold + int64_t{slot} * fold_floats(kHeadDim);
  }

  SAGE_DEVICE static void give_fold_slot_back(Params const& p, Place const& place) {
    arch::fence();
    arch::sync_block();  // all threads have read theirs
    if (arch::thread_index() == 0) arch::exchange(&p.fold_busy[(place.fold - p.fold) / fold_floats(kHeadDim)], 0);
  }

  // This thread's 16 bytes i of the slot: the accumulator fragments by 16-row tile and channel tile, then for each
  // 16-row tile the maximum that they are relative to and the row sum of rows lane / 4 and lane / 4 + 8.
  SAGE_DEVICE static float4& folded(Place const& place, int i) {
    return reinterpret_cast<float4*>(place.fold)[i * kThreads + arch::thread_index()];
  }

  // Adds the accumulators to the slot, and empties them.
  SAGE_DEVICE static void fold(Place const& place, Accum& o, PerRow const& row_max, bool first) {
    SAGE_UNROLL for (int mt = 0; mt < kMTiles; ++mt) {
      float4& rows = folded(place, kFragments + mt);
      float4 const old = first ? float4{row_max[mt][0], 0.f, row_max[mt][1], 0.f} : rows;
      float const f0 = arch::exp2_approx(old.x - row_max[mt][0]), f1 = arch::exp2_approx(old.z - row_max[mt][1]);
      rows = {row_max[mt][0], 0.f, row_max[mt][1], 0.f};
      if constexpr (Accum::kDivisor == tile::Divisor::kAccumulated) {
        rows.y = fmaf(old.y, f0, o.row_sum(mt, 0));
        rows.w = fmaf(old.w, f1, o.row_sum(mt, 1));
      }
      SAGE_UNROLL for (int n = 0; n < kHeadDim / 8; ++n) {
        float4& sum = folded(place, mt * (kHeadDim / 8) + n);
        float4 const x = first ? float4{0.f, 0.f, 0.f, 0.f} : sum;
        sum = {fmaf(x.x, f0, o.value(mt, n, 0)), fmaf(x.y, f0, o.value(mt, n, 1)), fmaf(x.z, f1, o.value(mt, n, 2)),
               fmaf(x.w, f1, o.value(mt, n, 3))};
      }
    }
    o = {};
  }

  // Where this lane's first row for ldmatrix is in a tile of V, lane / 8 * 1024 + lane % 8 * 16, of where it is in a
  // tile of K, lane / 16 * 128 + lane / 8 % 2 * 1024 + lane % 8 * 16.
  SAGE_DEVICE static uint32_t place_v(uint32_t place_k) { return place_k + place_k % 256 / 128 * (2048 - 128); }

  // What a thread copies of 16-bit V, in the order of tile::load_v16: this row and channel, and others a constant away.
  SAGE_DEVICE static uint32_t v16_row(uint32_t thread) { return thread / 64 * 8 + thread % 8; }
  SAGE_DEVICE static uint32_t v16_channel(uint32_t thread) { return thread / 8 % 8 * 8; }

  SAGE_DEVICE static char const* v_source(SharedStorage const& shared, uint32_t thread) {
    if constexpr (kV8) {
      return shared.place.v;
    } else {
      return shared.threads[thread].v;
    }
  }

  // Copies tile n of K, its scales and V to its stage.
  SAGE_DEVICE static void copy_tile(Params const& p, SharedStorage& shared, uint32_t n) {
    // Pinned, so that addresses are computed anew for every tile instead of being kept in registers. Shared memory is
    // read before the first copy, which the compiler takes for a write to it.
    uint32_t const thread = arch::pinned(arch::thread_index());
    Stage& stage = shared.stages[n % 2];
    char* const dst = stage.k + thread * 16;
    char const* const k = shared.place.k + int64_t{n * (kKBytes / 16) + thread} * 16;  // 32 bits: kMaxSeqlen
    float const* const k_scale = shared.place.k_scale;
    char const* const v = v_source(shared, thread);
    int64_t const v_stride = shared.place.v_stride, seqlen_k = shared.place.sequence.seqlen_k;
    bool const whole = n < shared.place.v_whole;
    if (thread == 0) arch::cp_async(reinterpret_cast<char*>(stage.k_scale), k_scale + n * kKScalesPerTile);
    SAGE_UNROLL for (int i = 0; i < Qk::kCodeBytes / kChunk; ++i)
      arch::cp_async(dst + i * kChunk, k + i * kChunk);
    if (Qk::kCodeBytes < kKBytes && p.q_mean) {
      SAGE_UNROLL for (int i = Qk::kCodeBytes / kChunk; i < kKBytes / kChunk; ++i)
        arch::cp_async(dst + i * kChunk, k + i * kChunk);
    }
    if constexpr (kV8) {
      char const* const src = v + int64_t{n * (kVBytes / 16) + thread} * 16;
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

  // The scores' maximum less `offset`, which P = 2^(score - maximum) is larger by.
  SAGE_DEVICE static void find_maximum(Scores const& s, float unit, float bias, float offset, PerRow& tile_max) {
    SAGE_UNROLL for (int i = 0; i < 2 * kMTiles; ++i) {
      int const mt = i / 2, r = i % 2;
      float x = arch::as_float(s[mt][0][2 * r]), y = arch::as_float(s[mt][0][2 * r + 1]);
      SAGE_UNROLL for (int n = 1; n < kBlockN / 8; ++n) {
        x = fmaxf(x, arch::as_float(s[mt][n][2 * r]));
        y = fmaxf(y, arch::as_float(s[mt][n][2 * r + 1]));
      }
      // Rounded up, so that no score is above it.
      tile_max[mt][r] = -arch::fma_down(bias - fmaxf(x, y), unit, offset);
      if constexpr (kTileMax) tile_max[mt][r] = fmaxf(tile::max_of_quad(tile_max[mt][r]), -FLT_MAX);
    }
  }

  // Takes the maximum of a tile, or this lane's share of it, into the rows', and brings what was summed to it.
  SAGE_DEVICE static void move_maximum(PerRow const& tile_max, PerRow& row_max, Accum& o, PerRow& exp_sum,
                                       PerRow& p_sum) {
    bool moves = false;
    SAGE_UNROLL for (int i = 0; i < 2 * kMTiles; ++i)
      moves |= tile_max[i / 2][i % 2] > row_max[i / 2][i % 2];
    if (!arch::any(moves)) return;
    PerRow decay;
    SAGE_UNROLL for (int i = 0; i < 2 * kMTiles; ++i) {
      int const mt = i / 2, r = i % 2;
      float const x = kTileMax ? tile_max[mt][r] : tile::max_of_quad(tile_max[mt][r]);
      float const new_max = fmaxf(row_max[mt][r], x);
      decay[mt][r] = arch::exp2_approx(row_max[mt][r] - new_max);
      row_max[mt][r] = new_max;
      exp_sum[mt][r] *= decay[mt][r];
      p_sum[mt][r] *= decay[mt][r];
    }
    o.scale(decay);
  }

  // P = 2^(score - base), packed, and this lane's share of its sums before P is rounded.
  SAGE_DEVICE static void exponentiate(Scores const& s, float unit, float bias, PerRow const& base,
                                       typename Accum::Probabilities& probabilities, PerRow& sum) {
    SAGE_UNROLL for (int i = 0; i < 2 * kMTiles; ++i) {
      int const mt = i / 2, r = i % 2;
      // Its last place is worth about one step of q . k. Integer P must not exceed 1, or its byte would wrap.
      float const offset = kTileMax ? arch::fma_down(-bias, unit, -base[mt][r]) : fmaf(-bias, unit, -base[mt][r]);
      auto element = [&](int n, int e) {
        float const x = arch::exp2_approx(fmaf(arch::as_float(s[mt][n][2 * r + e]), unit, offset));
        if constexpr (kSumsP) sum[mt][r] = n == 0 && e == 0 ? x : sum[mt][r] + x;
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
    int64_t const head_kv = int64_t{place.batch} * p.num_heads_kv + place.head_kv;
    float const* const v_scale = p.v_scale ? p.v_scale + head_kv * kHeadDim : nullptr;
    float const* const v_mean = p.v_mean ? p.v_mean + head_kv * kHeadDim : nullptr;
    SAGE_UNROLL for (int i = 0; i < 2 * kMTiles; ++i) {
      int const mt = i / 2, r = i % 2;
      int64_t const row = place.row + (arch::warp_index() * kMTiles + mt) * 16 + r * 8 + lane / 4;
      float sum, divisor;
      if constexpr (Accum::kDivisor == tile::Divisor::kAccumulated) {
        sum = divisor = !place.fold ? o.row_sum(mt, r)
                        : r         ? folded(place, kFragments + mt).w
                                    : folded(place, kFragments + mt).y;
      } else {
        sum = divisor = tile::sum_of_quad(exp_sum[mt][r]);
        // Integer P cannot hold NaN, but the sum before rounding does.
        if constexpr (Accum::kDivisor == tile::Divisor::kRounded) divisor = tile::sum_of_quad(p_sum[mt][r]) + 0.f * sum;
      }
      bool const seen = divisor != 0.f;  // else no key was: out is 0 and lse -inf, even where V or K holds NaN
      float const factor = 1.f / divisor;
      if (row >= sequence.seqlen_q) continue;
      uint16_t* const out = static_cast<uint16_t*>(p.out.data) + place.batch * p.out.stride_batch +
                            place.head * p.out.stride_head + (sequence.row_q + row) * p.out.stride_seq;
      SAGE_UNROLL for (int n = 0; n < kHeadDim / 8; ++n) {
        int const channel = n * 8 + t * 2;
        float x = o.value(mt, n, 2 * r), y = o.value(mt, n, 2 * r + 1);
        if constexpr (Accum::kFolds) {
          if (place.fold) {
            float4 const all = folded(place, mt * (kHeadDim / 8) + n);
            x = r ? all.z : all.x;
            y = r ? all.w : all.y;
          }
        }
        x *= factor;
        y *= factor;
        if (v_scale) {
          x *= v_scale[channel];
          y *= v_scale[channel + 1];
        }
        if (v_mean) {
          x += v_mean[channel];
          y += v_mean[channel + 1];
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

}  // namespace sage
