// Forward attention on sm_120a with NVFP4 tensor cores (SageAttention3): Q K^T in NVFP4; P V in NVFP4 (section 3.2),
// or, for accuracy, in e4m3. Warp-specialised; operands as common/nvfp4_format.h has them.
//
// As many blocks as the GPU has multiprocessors work through the items: tiles of 128 query rows of a head. Eight math
// warps compute 16 of the rows each. Four service warps feed them: one thread copies K and V to shared memory, stage by
// stage; where Q is smoothed, all four multiply the mean of the tile's rows by the keys of a stage, which the math
// warps take as the first addend of Q K^T. A full barrier of a stage says that what was to be copied to it is there, a
// corrected barrier that its corrections are, an empty barrier that all math warps have read both.
//
// A math warp has the scores of 64 keys ahead: Q K^T of the next 64 and P V of these are given to the tensor cores
// while it makes P of these. P is 2^(score - reference), with a reference of the row that is a whole number of octaves:
// it moves only where a P would not fit its format, and what moves with it is multiplied by a power of two
// (tile/lazy_softmax.h). The rows' sums are accumulated by the same instructions, as a column of ones in V: they are of
// P as it was rounded.
#pragma once
#include <cutlass/arch/barrier.h>
#include <cutlass/arch/reg_reconfig.h>

#include <cmath>
#include <cstdint>
#include <cute/tensor.hpp>

#include "arch/block_scaled.h"
#include "arch/bulk_copy.h"
#include "arch/convert.h"
#include "arch/math.h"
#include "arch/simt.h"
#include "arch/tensor_ops.h"
#include "attention/params.h"
#include "attention/store_row.h"
#include "attention/work.h"
#include "common/nvfp4_format.h"
#include "common/quant_format.h"
#include "tile/lazy_softmax.h"
#include "tile/mask_scores.h"

namespace sage::sm120 {

// What P and V are rounded to.
enum class Fp4Mode { kNvfp4, kFp8 };

template <int kHeadDim, Fp4Mode kMode>
struct Fp4AttnFwd {
  static constexpr bool kNvfp4 = kMode == Fp4Mode::kNvfp4;
  static constexpr int kServiceWarps = 4, kMathWarps = 8;
  static constexpr int kThreads = 32 * (kServiceWarps + kMathWarps), kMinBlocksPerSm = 1;
  static constexpr int kServiceRegisters = 120, kMathRegisters = 192;
  static_assert(
      32 * (kServiceWarps * kServiceRegisters + kMathWarps * kMathRegisters) <= 65536 / 8 / kThreads * 8 * kThreads,
      "a block has what its threads start with, a multiple of 8 each; with more, the math warps would wait forever");
  static constexpr int kRows = 16;  // of a math warp
  static constexpr int kTilesPerStage = 2, kKeys = kTilesPerStage * kKTileRows;
  static constexpr int kStages = 3, kRestStages = 2;
  static constexpr int kPlaneBytes = nvfp4_bytes(kKTileRows, kHeadDim);
  static constexpr int kVTileBytes = kNvfp4 ? kPlaneBytes : kKTileRows * kHeadDim;
  static constexpr int kQkSteps = kHeadDim / 64;  // instructions along the channels
  static constexpr int kNTiles = kKTileRows / 8;  // of the scores of a tile of keys
  static constexpr int kOutTiles = kHeadDim / 8;  // of O; the row sums are one more
  using Params = AttnParams;
  using Work = sage::Work<kHeadDim, kMathWarps, kRows, kKeys>;
  using Place = typename Work::Place;
  using ScoreTile = tile::ScoreTile;

  struct SharedStorage {
    alignas(128) char k[kStages][kTilesPerStage][kPlaneBytes];
    alignas(128) char v[kStages][kTilesPerStage][kVTileBytes];
    alignas(128) char rest[kRestStages][kTilesPerStage][kPlaneBytes];  // second planes of K
    // {x, y, x, y}: what is added to the scores of two keys, of rows g and g + 8 of a fragment.
    float4 correction[kStages][kTilesPerStage][kNTiles][4];
    alignas(16) float k_scale[kStages][kTilesPerStage][kKScalesPerTile];
    uint64_t full[kStages], corrected[kStages], empty[kStages], rest_full[kRestStages], rest_empty[kRestStages];
    uint32_t scratch[32 * kMathWarps];             // of arch::opaque
    Place places[kMathWarps + kServiceWarps + 1];  // of each warp, and of what is copied
  };
  static_assert(sizeof(SharedStorage) <= 99 * 1024, "sm_120 has 99 KiB for a block");

  static int64_t num_blocks(Params const& p) { return Work::num_blocks(p); }

  SAGE_DEVICE void operator()(Params const& p, char* smem) const {
    SharedStorage& shared = *reinterpret_cast<SharedStorage*>(smem);
    int const warp = cutlass::canonical_warp_idx_sync();
    prepare(p, shared);
    if (warp < kServiceWarps) {
      cutlass::arch::warpgroup_reg_dealloc<kServiceRegisters>();
      Service(p, shared, warp).run();
    } else {
      cutlass::arch::warpgroup_reg_alloc<kMathRegisters>();
      Math(p, shared, warp - kServiceWarps).run();
    }
  }

 private:
  using Barrier = cutlass::arch::ClusterBarrier;
  using TransactionBarrier = cutlass::arch::ClusterTransactionBarrier;

  // A place in a ring of `kSize`, and the parity of the round. Of a barrier in it one waits for the round's phase.
  template <int kSize>
  struct Slot {
    int index = 0;
    uint32_t phase = 0;

    SAGE_DEVICE Slot next() const { return index + 1 < kSize ? Slot{index + 1, phase} : Slot{0, phase ^ 1}; }
  };

  // Barriers, and corrections for where nothing writes them.
  SAGE_DEVICE static void prepare(Params const& p, SharedStorage& shared) {
    if (arch::thread_index() == 0) {
      SAGE_UNROLL for (int i = 0; i < kStages; ++i) {
        Barrier::init(&shared.full[i], 1);
        Barrier::init(&shared.corrected[i], kServiceWarps);
        Barrier::init(&shared.empty[i], kMathWarps);
      }
      SAGE_UNROLL for (int i = 0; i < kRestStages; ++i) {
        Barrier::init(&shared.rest_full[i], 1);
        Barrier::init(&shared.rest_empty[i], kServiceWarps);
      }
      cutlass::arch::fence_barrier_init();
    }
    if (!p.q_mean) {
      constexpr int kCorrections = kStages * kTilesPerStage * kNTiles * 4;
      for (int i = arch::thread_index(); i < kCorrections; i += kThreads) {
        (&shared.correction[0][0][0][0])[i] = {0.f, 0.f, 0.f, 0.f};
      }
    }
    arch::sync_block();  // barriers and corrections are visible to all
  }

  // A warp has read or written what the barrier is about.
  SAGE_DEVICE static void arrive(uint64_t& barrier) {
    arch::sync_warp();
    if (arch::lane_index() == 0) Barrier::arrive(&barrier);
  }

  // ---- Service warps -----------------------------------------------------------------------------------------------

  // Copies one stage after another, of all items of the block; one thread.
  struct Loader {
    Params const& p;
    SharedStorage& shared;
    Place& place;
    uint32_t round = 0;
    int32_t step = 0, steps = 0;  // of the item
    Slot<kStages> slot;
    Slot<kRestStages> rest_slot;

    SAGE_DEVICE Loader(Params const& params, SharedStorage& storage)
        : p(params), shared(storage), place(storage.places[kMathWarps + kServiceWarps]) {}

    // Waits until the stage is free. Returns whether there was anything left to copy.
    SAGE_DEVICE bool load() {
      while (step >= steps) {
        if (steps < 0) return false;
        Work::find(p, round++, 0, place);
        steps = place.steps;
        step = 0;
      }
      Sequence const& sequence = place.sequence;
      // Where a stage's second tile does not exist, the last one is there twice; no row sees its keys.
      int32_t const last_tile = static_cast<int32_t>(ceil_div(sequence.seqlen_k, kKTileRows)) - 1;
      int32_t const first = (place.first + step * place.direction) * kTilesPerStage;
      int64_t const k_tile = p.first_k_tile(place.batch, place.head_kv, sequence);
      int64_t const planes = p.q_mean ? 2 : 1;
      Barrier::wait(&shared.empty[slot.index], slot.phase ^ 1);
      uint64_t& full = shared.full[slot.index];
      TransactionBarrier::arrive_and_expect_tx(
          &full, kTilesPerStage * (kPlaneBytes + kVTileBytes + kKScalesPerTile * static_cast<int>(sizeof(float))));
      uint64_t& rest_full = shared.rest_full[rest_slot.index];
      if (p.q_mean) {
        Barrier::wait(&shared.rest_empty[rest_slot.index], rest_slot.phase ^ 1);
        TransactionBarrier::arrive_and_expect_tx(&rest_full, kTilesPerStage * kPlaneBytes);
      }
      SAGE_UNROLL for (int i = 0; i < kTilesPerStage; ++i) {
        int64_t const tile = k_tile + (first + i < last_tile ? first + i : last_tile);
        char const* const k = p.k + tile * (planes * kPlaneBytes);
        arch::bulk_copy(shared.k[slot.index][i], k, kPlaneBytes, full);
        arch::bulk_copy(shared.v[slot.index][i], static_cast<char const*>(p.v.data) + tile * kVTileBytes, kVTileBytes,
                        full);
        arch::bulk_copy(shared.k_scale[slot.index][i], p.k_scale + tile * kKScalesPerTile,
                        kKScalesPerTile * sizeof(float), full);
        if (p.q_mean) arch::bulk_copy(shared.rest[rest_slot.index][i], k + kPlaneBytes, kPlaneBytes, rest_full);
      }
      ++step;
      slot = slot.next();
      rest_slot = rest_slot.next();
      return true;
    }
  };

  // A warp of them: 32 keys of a stage.
  struct Service {
    Params const& p;
    SharedStorage& shared;
    Place& place;
    int const warp;
    uint32_t mean[kQkSteps][2] = {}, mean_scales[kQkSteps] = {};  // B fragments, of which 4 columns are digits

    SAGE_DEVICE Service(Params const& params, SharedStorage& storage, int warp_index)
        : p(params), shared(storage), place(storage.places[kMathWarps + warp_index]), warp(warp_index) {}

    SAGE_DEVICE void run() {
      bool const loads = warp == 0 && arch::lane_index() == 0;
      Loader loader(p, shared);
      if (!p.q_mean) {
        if (loads) {
          while (loader.load()) continue;
        }
        return;
      }
      if (loads) {
        SAGE_NO_UNROLL
        for (int i = 0; i < kStages - 1; ++i) loader.load();
      }
      Slot<kStages> slot;
      Slot<kRestStages> rest_slot;
      SAGE_NO_UNROLL
      for (uint32_t round = 0;; ++round) {
        arch::sync_warp();  // no lane reads the place of the item before
        if (arch::lane_index() == 0) Work::find(p, round, 0, place);
        arch::sync_warp();  // the place is visible
        if (place.steps < 0) return;
        if (place.steps > 0) load_mean();
        SAGE_NO_UNROLL
        for (int32_t step = 0; step < place.steps; ++step) {
          Barrier::wait(&shared.full[slot.index], slot.phase);
          Barrier::wait(&shared.rest_full[rest_slot.index], rest_slot.phase);
          correct(slot.index, rest_slot.index);
          arrive(shared.corrected[slot.index]);
          arrive(shared.rest_empty[rest_slot.index]);
          slot = slot.next();
          rest_slot = rest_slot.next();
          // After the correction: the stage is free when the math warps are done with the step before this one, to
          // which they need what was just written.
          if (loads) loader.load();
          arch::sync_warp();  // mma is for a whole warp
        }
      }
    }

   private:
    SAGE_DEVICE void load_mean() {
      int const lane = arch::lane_index();
      int64_t const tile = p.first_q_tile(place.batch, place.head, place.sequence) + place.row / kQTileRows;
      char const* const digits = p.q_mean + tile * q_mean_nvfp4_bytes(kHeadDim);
      if (lane >= 4 * kQMeanDigits) return;
      SAGE_UNROLL for (int i = 0; i < kQkSteps; ++i) {
        load_words(mean[i], digits + i * 128 + lane * 8);
        mean_scales[i] = *reinterpret_cast<uint32_t const*>(digits + kQkSteps * 128 + i * 16 + lane / 4 * 4);
      }
    }

    SAGE_DEVICE void correct(int slot, int rest_slot) {
      int const lane = arch::lane_index(), column = lane / 4, tile = warp / 2, half = warp % 2;
      float sum[2][4] = {};
      add(sum, shared.k[slot][tile], half);
      add(sum, shared.rest[rest_slot][tile], half);
      SAGE_UNROLL for (int i = 0; i < 2; ++i) {
        // Digits 0 and 1 are with lane q = 0, digits 2 and 3 with q = 1; of a column of two instructions.
        float x = sum[i][0] + sum[i][1], y = sum[i][2] + sum[i][3];
        x += arch::shuffle_xor(x, 1);
        y += arch::shuffle_xor(y, 1);
        if (lane % 4 < 2) {
          float4& correction = shared.correction[slot][tile][half * 4 + i * 2 + lane % 4][column / 2];
          float const value = lane % 4 == 0 ? x : y;
          (column % 2 == 0 ? correction.x : correction.y) = value;
          (column % 2 == 0 ? correction.z : correction.w) = value;
        }
      }
    }

    // 32 keys of a plane times the digits. The columns of two successive instructions of Q K^T are the rows here: what
    // their B fragments have in a lane is what an A fragment has there.
    SAGE_DEVICE void add(float (&sum)[2][4], char const* plane, int half) const {
      int const lane = arch::lane_index();
      uint32_t scales[kQkSteps];  // of instruction lane % 4; rows' are with lanes q = 0 and q = 1
      load_words(scales, plane + nvfp4_values(kKTileRows, kHeadDim) + lane * (kHeadDim / 8) + half * (kHeadDim / 16));
      SAGE_UNROLL for (int i = 0; i < 2; ++i) {
        uint32_t k[2][2 * kQkSteps];
        SAGE_UNROLL for (int n = 0; n < 2; ++n)
          load_words(k[n], plane + ((half * 4 + i * 2 + n) * 32 + lane) * (kHeadDim / 8));
        SAGE_UNROLL for (int j = 0; j < kQkSteps; ++j) {
          uint32_t const a[4] = {k[0][2 * j], k[1][2 * j], k[0][2 * j + 1], k[1][2 * j + 1]};
          uint32_t const a_scales = i == 0 ? scales[j] : arch::shuffle_xor(scales[j], 2);
          arch::mma_nvfp4<0>(sum[i], a, mean[j][0], mean[j][1], sum[i], a_scales, mean_scales[j]);
        }
      }
    }
  };

  // Neighbouring words of memory, in one instruction.
  template <int kWords>
  SAGE_DEVICE static void load_words(uint32_t (&x)[kWords], char const* memory) {
    static_assert(kWords == 1 || kWords == 2 || kWords == 4);
    struct alignas(4 * kWords) Words {
      uint32_t word[kWords];
    };
    Words const words = *reinterpret_cast<Words const*>(memory);
    SAGE_UNROLL for (int i = 0; i < kWords; ++i)
      x[i] = words.word[i];
  }

  // ---- Math warps --------------------------------------------------------------------------------------------------

  // Members are registers of a lane 4 g + q, which has the rows g and g + 8 of the warp's 16.
  struct Math {
    static constexpr uint32_t kOnes = kNvfp4 ? 0x22222222u : 0x38383838u;  // values of V
    using Softmax = tile::LazySoftmax<kNvfp4>;

    Params const& p;
    SharedStorage& shared;
    Place& place;
    int const warp, lane;
    uint32_t const bytes_of_row;  // for permute_bytes, of two words of codes: those of row g, or g + 8
    uint32_t const ones[2];
    uint32_t const unit_scales;
    Slot<kStages> slot;

    uint32_t q[kQkSteps][4], q_scales[kQkSteps];
    float q_scale;
    float out[kOutTiles + 1][4];  // accumulator fragments of O and, in the last one, of the row sums
    Softmax softmax;

    SAGE_DEVICE Math(Params const& params, SharedStorage& storage, int math_warp)
        : p(params),
          shared(storage),
          place(storage.places[math_warp]),
          warp(math_warp),
          lane(constant(arch::lane_index())),
          bytes_of_row(constant(lane % 2 ? 0x0073 : 0x0040)),
          ones{constant(kOnes), constant(kOnes)},
          unit_scales(constant(0x38383838u)) {}

    SAGE_DEVICE void run() {
      SAGE_NO_UNROLL
      for (uint32_t round = 0;; ++round) {
        arch::sync_warp();  // no lane reads the place of the item before
        if (lane == 0) Work::find(p, round, warp, place);
        arch::sync_warp();  // the place is visible
        int32_t const steps = place.steps, begin = place.seen.begin, count = place.seen.count;
        if (steps < 0) return;
        begin_rows();
        if (count > 0) {
          load_q();
          pass(begin);
          take(begin, begin + count);
          pass(steps - (begin + count));
        } else {
          pass(steps);
        }
        store<0>();
        store<1>();
      }
    }

   private:
    // In a register: else it would be computed anew for every use.
    SAGE_DEVICE uint32_t constant(uint32_t x) const {
      return arch::opaque(x, reinterpret_cast<char*>(&shared.scratch[arch::thread_index() % (32 * kMathWarps)]));
    }

    SAGE_DEVICE void begin_rows() {
      SAGE_UNROLL for (int i = 0; i < 4 * (kOutTiles + 1); ++i)
        out[i / 4][i % 4] = 0.f;
      softmax.begin(p.log2_p_max);
    }

    SAGE_DEVICE void load_q() {
      int64_t const tile = p.first_q_tile(place.batch, place.head, place.sequence) + place.row / kQTileRows;
      int const part = static_cast<int>(place.row % kQTileRows) / kRows * kQkSteps;
      char const* const values = p.q + tile * nvfp4_bytes(kQTileRows, kHeadDim);
      char const* const scales = values + nvfp4_values(kQTileRows, kHeadDim);
      SAGE_UNROLL for (int i = 0; i < kQkSteps; ++i) {
        load_words(q[i], values + (part + i) * 512 + lane * 16);
        // Of row g by lane q = 0, of row g + 8 by lane q = 1.
        q_scales[i] = *reinterpret_cast<uint32_t const*>(scales + (part + i) * 64 + (lane / 4 + lane % 2 * 8) * 4);
      }
      q_scale = p.q_scale[tile * kQScalesPerTile];
    }

    SAGE_DEVICE void await(Slot<kStages> const& stage) const {
      Barrier::wait(&shared.full[stage.index], stage.phase);
      if (p.q_mean) Barrier::wait(&shared.corrected[stage.index], stage.phase);
    }

    SAGE_DEVICE void release() {
      arrive(shared.empty[slot.index]);
      slot = slot.next();
    }

    // Steps in which no row of the warp sees a key.
    SAGE_DEVICE void pass(int32_t steps) {
      SAGE_NO_UNROLL
      for (int32_t i = 0; i < steps; ++i) {
        await(slot);
        release();
      }
    }

    SAGE_DEVICE void take(int32_t begin, int32_t end) {
      typename Work::Interval const whole = place.whole;
      ScoreTile first, second;  // of a stage
      await(slot);
      multiply_q_k<0>(first, slot.index);
      if (!whole.has(begin)) mask<0>(first, begin);
      softmax.fit(first, out);
      SAGE_NO_UNROLL
      for (int32_t step = begin;; ++step) {
        take<0>(first, second, slot.index, step, whole.has(step));
        bool const is_last = step + 1 == end;
        Slot<kStages> const next = is_last ? slot : slot.next();
        if (!is_last) await(next);
        take<1>(second, first, next.index, step + 1, whole.has(step + 1));
        release();
        if (is_last) return;
      }
    }

    // Adds P V of `scores`, tile kTile of the current stage, and makes scores of the tile behind it, which is in stage
    // `ahead_slot` and belongs to `ahead_step`, of which all rows see all keys where it is `whole`. Behind the last
    // step no row sees a key, so that it does not matter which ones are there.
    template <int kTile>
    SAGE_DEVICE void take(ScoreTile const& scores, ScoreTile& ahead, int ahead_slot, int32_t ahead_step, bool whole) {
      uint32_t probabilities[Softmax::kRegisters], p_scales = 0;
      multiply_q_k<1 - kTile>(ahead, ahead_slot);
      softmax.exponentiate(scores, probabilities);
      if constexpr (kNvfp4) p_scales = scales_of_p(scores);
      if (!whole) mask<1 - kTile>(ahead, ahead_step);
      multiply_p_v<kTile>(probabilities, p_scales);
      softmax.fit(ahead, out);
    }

    // ---- Tensor cores ----

    template <int kTile>
    SAGE_DEVICE void multiply_q_k(ScoreTile& tile, int stage) const {
      char const* const k = shared.k[stage][kTile];
      uint32_t scales[2 * kQkSteps];
      load_words(scales, k + nvfp4_values(kKTileRows, kHeadDim) + lane * (kHeadDim / 8));
      cute::for_each(cute::make_int_sequence<kNTiles>{}, [&](auto n) {
        uint32_t b[2 * kQkSteps];
        load_words(b, k + (n * 32 + lane) * (kHeadDim / 8));
        float4 const correction = shared.correction[stage][kTile][n][lane % 4];
        float s[4] = {correction.x, correction.y, correction.z, correction.w};
        SAGE_UNROLL for (int i = 0; i < kQkSteps; ++i)
          arch::mma_nvfp4<n % 4>(s, q[i], b[2 * i], b[2 * i + 1], s, q_scales[i], scales[n / 4 * kQkSteps + i]);
        SAGE_UNROLL for (int i = 0; i < 4; ++i)
          tile.scores[0][n][i] = arch::as_uint(s[i]);
      });
      tile.scale = q_scale * shared.k_scale[stage][kTile][0];
    }

    // NVFP4: probabilities[r + 2 h] is register r + 2 h of an A fragment. e4m3: probabilities[4 h ..] are one.
    template <int kTile, int kRegisters>
    SAGE_DEVICE void multiply_p_v(uint32_t const (&probabilities)[kRegisters], uint32_t scales) {
      char const* const v = shared.v[slot.index][kTile];
      if constexpr (kNvfp4) {
        uint32_t v_scales[kHeadDim / 32];
        load_words(v_scales, v + nvfp4_values(kKTileRows, kHeadDim) + lane * (kHeadDim / 8));
        cute::for_each(cute::make_int_sequence<kOutTiles / 2>{}, [&](auto pair) {
          constexpr int n = 2 * pair;
          uint32_t b[4];
          load_words(b, v + (pair * 32 + lane) * 16);
          arch::mma_nvfp4<n % 4>(out[n], probabilities, b[0], b[1], out[n], scales, v_scales[n / 4]);
          arch::mma_nvfp4<n % 4 + 1>(out[n + 1], probabilities, b[2], b[3], out[n + 1], scales, v_scales[n / 4]);
        });
        arch::mma_nvfp4<0>(out[kOutTiles], probabilities, ones[0], ones[1], out[kOutTiles], scales, unit_scales);
      } else {
        SAGE_UNROLL for (int h = 0; h < 2; ++h) {
          uint32_t const a[4] = {probabilities[4 * h], probabilities[4 * h + 1], probabilities[4 * h + 2],
                                 probabilities[4 * h + 3]};
          SAGE_UNROLL for (int n = 0; n < kOutTiles; n += 2) {
            uint32_t b[4];
            load_words(b, v + h * (32 * kHeadDim) + (n / 2 * 32 + lane) * 16);
            uint32_t const even[2] = {b[0], b[1]}, odd[2] = {b[2], b[3]};
            arch::mma<arch::E4m3Mma>(out[n], a, even, out[n]);
            arch::mma<arch::E4m3Mma>(out[n + 1], a, odd, out[n + 1]);
          }
          arch::mma<arch::E4m3Mma>(out[kOutTiles], a, ones, out[kOutTiles]);
        }
      }
    }

    // The A scales of P: row g from lane q = 0, row g + 8 from lane q = 1, a byte for each 16 keys. Lanes 0 and 1 of a
    // quad have the codes of the blocks 0 and 2, lanes 2 and 3 those of 1 and 3.
    SAGE_DEVICE uint32_t scales_of_p(ScoreTile const& tile) const {
      uint32_t const mine = arch::permute_bytes(tile.codes[0], tile.codes[1], bytes_of_row);
      return arch::permute_bytes(mine, arch::shuffle_xor(mine, 2), 0x5140);
    }

    template <int kTile>
    SAGE_DEVICE void mask(ScoreTile& scores, int32_t step) const {
      int64_t const col = int64_t{place.first + step * place.direction} * kKeys + kTile * kKTileRows;
      // Pinned, so that nothing of it is read ahead of the loop and kept in registers.
      tile::mask_scores<true, tile::InRunsOf8>(scores.scores, scores.scale, 0.f, place.visible(p),
                                               *arch::pinned(&p.mask), place.batch, place.head, place.row, col);
      scores.scale = 1.f;
    }

    template <int r>
    SAGE_DEVICE void store() const {
      float const sum = out[kOutTiles][2 * r];
      store_row<kHeadDim>(p, place, place.row + r * 8 + lane / 4, softmax.reference[r], sum, sum,
                          [&](int n, int e) { return out[n][2 * r + e]; });
    }
  };
};

}  // namespace sage::sm120
