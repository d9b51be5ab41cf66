// Forward attention on sm_90a: INT8 Q K^T and e4m3 P V (SageAttention2, sections 3.2 and 4.3) by wgmma,
// warp-specialised.
//
// As many blocks as the GPU has multiprocessors work through the items: pieces of 192 (head_dim 256: 128) query rows of
// a head. One thread of a block, the producer, copies Q and, stage by stage, K and V to shared memory, in the images of
// common/quant_format.h; each of the other warpgroups computes 64 of the rows. A full barrier of a stage says that what
// was to be copied to it is there, an empty barrier that all math warps have read it.
//
// A warpgroup multiplies Q by the keys of a stage, makes P = 2^(score - maximum of the row), and adds P V in two
// halves: the tensor cores work on the first while the second half of P is made, and on what other warpgroups have
// issued while this one makes any of it. The maximum is exact, the accumulators move with it only where one of a warp's
// rows has a new one. They lose bits below 2^-13 of the largest addend at every addition: every params.fold_every tiles
// of keys they are added to float32 sums in shared memory. The rows' sums are accumulated by the same instructions, as
// a column of ones in V, so that what truncation takes from O it takes from its divisor, too.
//
// Needs CUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED, for the shapes of P V.
#pragma once
#include <cutlass/arch/barrier.h>
#include <cutlass/arch/reg_reconfig.h>

#include <cfloat>
#include <cstdint>
#include <cute/tensor.hpp>
#include <type_traits>

#include "arch/bulk_copy.h"
#include "arch/convert.h"
#include "arch/math.h"
#include "arch/simt.h"
#include "attention/params.h"
#include "attention/store_row.h"
#include "attention/work.h"
#include "common/quant_format.h"
#include "tile/mask_scores.h"

namespace sage::sm90 {

// How P is made: by exp2 and rounding, or a quarter of it by linear interpolation.
enum class Mode { kExact, kApproximateExp };

// What of a problem is in registers and in shared memory at a time. All math warpgroups together have 480 registers per
// lane, of which one needs kKeys / 2 for the scores and (head_dim + 8) / 2 for the accumulators.
template <int kHeadDim>
struct TileShape {
  static constexpr int kMathWarpgroups = 3, kTilesPerStage = 2;
  static constexpr int kProducerRegisters = 32, kMathRegisters = 160;
  static constexpr int kPvColumns = kHeadDim + 8;  // of an instruction: V and the ones
};
template <>
struct TileShape<256> {
  static constexpr int kMathWarpgroups = 2, kTilesPerStage = 1;
  static constexpr int kProducerRegisters = 24, kMathRegisters = 240;
  static constexpr int kPvColumns = (256 + 8) / 3;  // no instruction has 264
};

template <int kColumns>
struct PvInstruction;
template <>
struct PvInstruction<72> {
  using Op = cute::SM90::GMMA::MMA_64x72x32_F32E4M3E4M3_RS_TN<>;
};
template <>
struct PvInstruction<88> {
  using Op = cute::SM90::GMMA::MMA_64x88x32_F32E4M3E4M3_RS_TN<>;
};
template <>
struct PvInstruction<136> {
  using Op = cute::SM90::GMMA::MMA_64x136x32_F32E4M3E4M3_RS_TN<>;
};

template <int kHeadDim, Mode kMode>
struct AttnFwd {
  using Tile = TileShape<kHeadDim>;
  static constexpr int kMathWarpgroups = Tile::kMathWarpgroups, kTilesPerStage = Tile::kTilesPerStage;
  static constexpr int kThreads = 128 * (kMathWarpgroups + 1), kMinBlocksPerSm = 1;
  static constexpr int kRows = kWgmmaRows;                   // of a warpgroup
  static constexpr int kKeys = kTilesPerStage * kKTileRows;  // of a stage
  static constexpr int kStages = 2;          // their number is known where they are used: the loop has a body for each
  static constexpr int kSteps = kKeys / 32;  // instructions along the keys
  static constexpr int kNTiles = kKeys / 8;  // of the scores
  static constexpr int kOutTiles = kHeadDim / 8;  // of O; the row sums are one more
  static constexpr int kVImageBytes = kKTileRows * (kHeadDim + 8);
  using Params = AttnParams;
  using Work = sage::Work<kHeadDim, kMathWarpgroups, kRows, kKeys>;
  using Place = typename Work::Place;

  // Of one kind, full or empty.
  struct Barriers {
    uint64_t q, k[kStages], v[kStages];
  };
  struct SharedStorage {
    alignas(1024) char q[kMathWarpgroups][kRows * kHeadDim];
    alignas(1024) char k[kStages][kTilesPerStage][kKTileRows * kHeadDim];
    alignas(1024) char v[kStages][kTilesPerStage][kVImageBytes];  // V^T, then 8 rows of ones
    float4 folded[kMathWarpgroups][kOutTiles][128];               // fragments of O
    float2 folded_rows[kMathWarpgroups][kRows];                   // the maximum that they are relative to, the row sum
    alignas(16) float k_scale[kStages][kTilesPerStage][kKScalesPerTile];
    Barriers full, empty;
    Place places[kMathWarpgroups + 1];  // of the math warpgroups and, for one thread, the producer
  };
  static_assert(sizeof(SharedStorage) <= 227 * 1024, "sm_90 has 227 KiB for a block");

  static int64_t num_blocks(Params const& p) { return Work::num_blocks(p); }

  SAGE_DEVICE void operator()(Params const& p, char* smem) const {
    SharedStorage& shared = *reinterpret_cast<SharedStorage*>(smem);
    int const warpgroup = cutlass::canonical_warp_group_idx();
    prepare(shared);
    if (warpgroup == 0) {
      cutlass::arch::warpgroup_reg_dealloc<Tile::kProducerRegisters>();
      if (cutlass::canonical_warp_idx_sync() == 0 && cute::elect_one_sync()) produce(p, shared);
    } else {
      cutlass::arch::warpgroup_reg_alloc<Tile::kMathRegisters>();
      Math(p, shared, warpgroup - 1).run();
    }
  }

 private:
  using Barrier = cutlass::arch::ClusterBarrier;
  using TransactionBarrier = cutlass::arch::ClusterTransactionBarrier;

  // Barriers, and the ones behind V, which nothing overwrites.
  SAGE_DEVICE static void prepare(SharedStorage& shared) {
    if (arch::thread_index() == 0) {
      constexpr int kMathWarps = 4 * kMathWarpgroups;
      Barrier::init(&shared.full.q, 1);
      Barrier::init(&shared.empty.q, kMathWarps);
      SAGE_UNROLL for (int stage = 0; stage < kStages; ++stage) {
        Barrier::init(&shared.full.k[stage], 1);
        Barrier::init(&shared.full.v[stage], 1);
        Barrier::init(&shared.empty.k[stage], kMathWarps);
        Barrier::init(&shared.empty.v[stage], kMathWarps);
      }
      cutlass::arch::fence_barrier_init();
    }
    constexpr int kWords = 8 * kKTileRows / 4;  // of an image's ones
    for (int i = arch::thread_index(); i < kStages * kTilesPerStage * kWords; i += kThreads) {
      char* const image = shared.v[0][0] + i / kWords * kVImageBytes;
      reinterpret_cast<uint32_t*>(image + kKTileRows * kHeadDim)[i % kWords] = 0x38383838u;
    }
    cutlass::arch::fence_view_async_shared();  // wgmma reads the ones
    arch::sync_block();                        // barriers and ones are visible to all
  }

  // ---- Producer ----------------------------------------------------------------------------------------------------

  SAGE_DEVICE static void produce(Params const& p, SharedStorage& shared) {
    constexpr int kTileBytes = kKTileRows * kHeadDim, kScaleBytes = kKScalesPerTile * sizeof(float);
    Place& place = shared.places[kMathWarpgroups];
    // Of the empty barriers of the stages, bit `stage`, and of Q: at first nothing is in use.
    uint32_t phases = (2u << kStages) - 1;
    for (uint32_t round = 0;; ++round) {
      Work::find(p, round, 0, place);
      if (place.steps < 0) return;
      int64_t const k_tile = p.first_k_tile(place.batch, place.head_kv, place.sequence);
      int32_t const last_tile = static_cast<int32_t>(ceil_div(place.sequence.seqlen_k, kKTileRows)) - 1;
      for (int32_t step = 0; step < place.steps; ++step) {
        int const stage = step % kStages;
        uint32_t const phase = phases >> stage & 1;
        phases ^= 1u << stage;
        // Where a stage's second tile does not exist, the last one is there twice; no row sees its keys.
        auto const tile = [&](int i) {
          int32_t const n = (place.first + step * place.direction) * kTilesPerStage + i;
          return k_tile + (n < last_tile ? n : last_tile);
        };
        Barrier::wait(&shared.empty.k[stage], phase);
        TransactionBarrier::arrive_and_expect_tx(&shared.full.k[stage], kTilesPerStage * (kTileBytes + kScaleBytes));
        SAGE_UNROLL for (int i = 0; i < kTilesPerStage; ++i) {
          arch::bulk_copy(shared.k[stage][i], p.k + tile(i) * kTileBytes, kTileBytes, shared.full.k[stage]);
          arch::bulk_copy(shared.k_scale[stage][i], p.k_scale + tile(i) * kKScalesPerTile, kScaleBytes,
                          shared.full.k[stage]);
        }
        if (step == 0) {
          Barrier::wait(&shared.empty.q, phases >> kStages & 1);
          phases ^= 1u << kStages;
          copy_q(p, shared, place);
        }
        Barrier::wait(&shared.empty.v[stage], phase);
        TransactionBarrier::arrive_and_expect_tx(&shared.full.v[stage], kTilesPerStage * kTileBytes);
        SAGE_UNROLL for (int i = 0; i < kTilesPerStage; ++i) {
          arch::bulk_copy(shared.v[stage][i], static_cast<char const*>(p.v.data) + tile(i) * kTileBytes, kTileBytes,
                          shared.full.v[stage]);
        }
      }
    }
  }

  // Of as many warpgroups as have rows.
  SAGE_DEVICE static void copy_q(Params const& p, SharedStorage& shared, Place const& place) {
    int64_t const rows = place.sequence.seqlen_q - place.row;
    int const bytes =
        static_cast<int>(ceil_div(rows < Work::kItemRows ? rows : Work::kItemRows, kRows)) * kRows * kHeadDim;
    int64_t const row = p.first_q_tile(place.batch, place.head, place.sequence) * kQTileRows + place.row;
    TransactionBarrier::arrive_and_expect_tx(&shared.full.q, bytes);
    arch::bulk_copy(shared.q[0], p.q + row * kHeadDim, bytes, shared.full.q);
  }

  // ---- Math warpgroups ---------------------------------------------------------------------------------------------

  // One of them. Members are registers of a lane, which has the rows lane / 4 and lane / 4 + 8 of its warp's 16.
  struct Math {
    Params const& p;
    SharedStorage& shared;
    Place& place;
    int const w, thread;                // of the warpgroup
    uint32_t phases[kStages + 1] = {};  // of the full barriers of the stages, and of Q

    float q_scale;
    float row_max[2];                // less log2_p_max: P is 2^(score - row_max)
    float out[kOutTiles + 1][4];     // accumulator fragments of O and, in the last one, of the row sums
    uint32_t scores[1][kNTiles][4];  // of Q K^T: integers, then bits of floats
    uint32_t probabilities[kSteps][4];

    SAGE_DEVICE Math(Params const& params, SharedStorage& storage, int warpgroup)
        : p(params),
          shared(storage),
          place(storage.places[warpgroup]),
          w(warpgroup),
          thread(arch::thread_index() % 128) {}

    SAGE_DEVICE void run() {
      auto q = q_operand();
      auto k = k_operand();
      auto v = v_operand();
      // In registers: else they would be computed anew for every use.
      for (uint32_t* address : {&address_of(q), &address_of(k), &address_of(v)}) *address = arch::pinned(*address);
      SAGE_NO_UNROLL
      for (uint32_t round = 0;; ++round) {
        sync_warpgroup();  // no thread reads the place of the item before
        if (thread == 0) Work::find(p, round, w, place);
        sync_warpgroup();  // the place is visible
        if (place.steps < 0) return;
        begin_rows();
        int32_t next_fold = first_fold();
        if (place.steps > 0) {
          Barrier::wait(&shared.full.q, phases[kStages]);
          phases[kStages] ^= 1;
          static_assert(kStages == 2);
          SAGE_NO_UNROLL
          for (int32_t step = 0;; ++step) {
            if (take_step<0>(step, next_fold, q, k, v)) break;
            ++step;
            if (take_step<1>(step, next_fold, q, k, v)) break;
          }
        }
        bool const folded = next_fold != first_fold();
        if (folded) fold(false);
        store(folded);
      }
    }

   private:
    // With larger steps of Q K^T a row's maximum could exceed 2^17, where its rounding changes P by more than 2^(2^-7).
    static constexpr float kMaxScale = 0x1p17f / (127 * 127 * kHeadDim);

    SAGE_DEVICE static bool is_large(float const (&scale)[kTilesPerStage]) {
      float x = scale[0];
      SAGE_UNROLL for (int i = 1; i < kTilesPerStage; ++i)
        x = fmaxf(x, scale[i]);
      return x > kMaxScale;
    }

    SAGE_DEVICE void sync_warpgroup() const { cutlass::arch::NamedBarrier::sync(128, w); }
    SAGE_DEVICE int64_t first_row() const { return place.row + thread / 32 * 16; }  // of the warp

    // fold_every is at least kTilesPerStage.
    SAGE_DEVICE int32_t steps_per_fold() const { return p.fold_every / kTilesPerStage; }
    SAGE_DEVICE int32_t first_fold() const { return place.seen.begin + (steps_per_fold() - 1); }

    SAGE_DEVICE void begin_rows() {
      int64_t const row = first_row() + arch::lane_index() / 4;
      SAGE_UNROLL for (int r = 0; r < 2; ++r)
        row_max[r] = -FLT_MAX;  // below every finite score, and its difference from -inf is -inf
      clear();
      q_scale = 0.f;
      if (place.seen.count > 0) {
        int64_t const tile = p.first_q_tile(place.batch, place.head, place.sequence) + row / kQTileRows;
        q_scale = p.q_scale[tile * kQScalesPerTile + q_scale_index(static_cast<int>(row % kQTileRows))];
      }
    }

    SAGE_DEVICE void clear() {
      SAGE_UNROLL for (int i = 0; i < 4 * (kOutTiles + 1); ++i)
        out[i / 4][i % 4] = 0.f;
    }

    // A warp has read what the barrier is about.
    SAGE_DEVICE static void release(uint64_t& empty) {
      arch::sync_warp();
      if (arch::lane_index() == 0) Barrier::arrive(&empty);
    }

    // Returns whether it was the last one.
    template <int kStage, class Q, class K, class V>
    SAGE_DEVICE bool take_step(int32_t step, int32_t& next_fold, Q const& q, K const& k, V const& v) {
      uint32_t const phase = phases[kStage];
      phases[kStage] ^= 1;
      bool const is_last = step + 1 == place.steps, whole = place.whole.has(step);
      Barrier::wait(&shared.full.k[kStage], phase);
      if (!whole && !place.seen.has(step)) {
        release(shared.empty.k[kStage]);
        if (is_last) release(shared.empty.q);
        Barrier::wait(&shared.full.v[kStage], phase);
        release(shared.empty.v[kStage]);
        return is_last;
      }
      float scale[kTilesPerStage];  // of this lane's keys, and its rows
      SAGE_UNROLL for (int i = 0; i < kTilesPerStage; ++i)
        scale[i] = q_scale * shared.k_scale[kStage][i][arch::lane_index() % 4];
      multiply_q_k(q, k, kStage);
      release(shared.empty.k[kStage]);
      if (is_last) release(shared.empty.q);

      float tile_max[2];
      if (arch::any(!whole || is_large(scale))) {
        mask(scale, step, tile_max);
      } else {
        find_maximum(scale, tile_max);
      }
      move_maximum(tile_max);

      SAGE_UNROLL for (int half = 0; half < 2; ++half) {
        SAGE_UNROLL for (int i = half * kSteps / 2; i < (half + 1) * kSteps / 2; ++i)
          exponentiate(i, scale[i / 2]);
        if (half == 0) Barrier::wait(&shared.full.v[kStage], phase);
        multiply_p_v(v, kStage, half);
      }
      cute::warpgroup_wait<0>();
      fence(out);
      release(shared.empty.v[kStage]);
      if (step == next_fold && !is_last) {
        fold(next_fold == first_fold());
        next_fold += steps_per_fold();
      }
      return is_last;
    }

    // ---- Tensor cores ----

    using QkOp =
        std::conditional_t<kKeys == 128, cute::SM90_64x128x32_S32S8S8_SS_TN, cute::SM90_64x64x32_S32S8S8_SS_TN>;
    using QkAtom = std::conditional_t<kHeadDim == 64, cute::GMMA::Layout_K_SW64_Atom<int8_t>,
                                      cute::GMMA::Layout_K_SW128_Atom<int8_t>>;
    using PvOp = typename PvInstruction<Tile::kPvColumns>::Op;

    template <class T, int kRegisters>
    SAGE_DEVICE static void fence(T (&registers)[kRegisters][4]) {
      SAGE_UNROLL for (int i = 0; i < 4 * kRegisters; ++i)
        cute::warpgroup_fence_operand(registers[i / 4][i % 4]);
    }

    // Q of the warpgroup, and the stages of K and V: descriptors.
    SAGE_DEVICE auto q_operand() const {
      using namespace cute;
      auto const q = make_tensor(make_smem_ptr(reinterpret_cast<int8_t*>(shared.q[w])),
                                 tile_to_shape(QkAtom{}, Shape<Int<kRows>, Int<kHeadDim>>{}));
      return make_tiled_mma(QkOp{}).get_slice(thread).partition_fragment_A(q);
    }
    SAGE_DEVICE auto k_operand() const {
      using namespace cute;
      auto const k = make_tensor(make_smem_ptr(reinterpret_cast<int8_t*>(shared.k[0][0])),
                                 tile_to_shape(QkAtom{}, Shape<Int<kKeys>, Int<kHeadDim>, Int<kStages>>{}));
      return make_tiled_mma(QkOp{}).get_slice(thread).partition_fragment_B(k);
    }
    SAGE_DEVICE auto v_operand() const {
      using namespace cute;
      auto const v =
          make_tensor(make_smem_ptr(reinterpret_cast<float_e4m3_t*>(shared.v[0][0])),
                      tile_to_shape(GMMA::Layout_K_SW64_Atom<float_e4m3_t>{},
                                    Shape<Int<kHeadDim + 8>, Int<kKTileRows>, Int<kStages * kTilesPerStage>>{}));
      return make_tiled_mma(PvOp{}).get_slice(thread).partition_fragment_B(v);
    }

    // The word of a descriptor that has the address, in units of 16 bytes.
    template <class Fragment>
    SAGE_DEVICE static uint32_t& address_of(Fragment& fragment) {
      return fragment.data().desc_.reg32_[0];
    }

    // Sets the scores, of Q and the keys of a stage.
    template <class Q, class K>
    SAGE_DEVICE void multiply_q_k(Q const& q, K const& k, int stage) {
      using namespace cute;
      auto mma = make_tiled_mma(QkOp{});
      auto s = make_tensor(reinterpret_cast<int32_t*>(&scores[0][0][0]),
                           partition_fragment_C(mma, Shape<Int<kRows>, Int<kKeys>>{}).layout());
      mma.accumulate_ = GMMA::ScaleOut::Zero;
      fence(scores[0]);
      warpgroup_arrive();
      SAGE_UNROLL for (int i = 0; i < kHeadDim / 32; ++i) {
        gemm(mma, q(_, _, i), k(_, _, i, stage), s);
        mma.accumulate_ = GMMA::ScaleOut::One;
      }
      warpgroup_commit_batch();
      warpgroup_wait<0>();
      fence(scores[0]);
    }

    // Adds half of P V of a stage to the accumulators, at some time before the next wait.
    template <class V>
    SAGE_DEVICE void multiply_p_v(V const& v, int stage, int half) {
      using namespace cute;
      auto mma = make_tiled_mma(PvOp{});
      auto o = make_tensor(&out[0][0], partition_fragment_C(mma, Shape<Int<kRows>, Int<kHeadDim + 8>>{}).layout());
      mma.accumulate_ = GMMA::ScaleOut::One;
      fence(out);
      warpgroup_arrive();
      SAGE_UNROLL for (int i = half * kSteps / 2; i < (half + 1) * kSteps / 2; ++i) {
        auto const a = make_tensor(reinterpret_cast<float_e4m3_t*>(&probabilities[i][0]),
                                   make_layout(Shape<Shape<_4, _2, _2>, _1>{}));
        gemm(mma, a, v(_, _, i % 2, stage * kTilesPerStage + i / 2), o);
      }
      warpgroup_commit_batch();
    }

    // ---- Softmax ----

    // Of the keys of a stage, less log2_p_max; rounded up, so that no P is above p_max. Integer scores become floats.
    SAGE_DEVICE void find_maximum(float const (&scale)[kTilesPerStage], float (&tile_max)[2]) {
      SAGE_UNROLL for (int r = 0; r < 2; ++r) {
        SAGE_UNROLL for (int i = 0; i < kTilesPerStage; ++i) {
          auto const score = [&](int j) { return static_cast<int>(scores[0][i * 8 + j / 2][2 * r + j % 2]); };
          int x = arch::max_of_three(score(0), score(1), score(2)), y = score(3);
          SAGE_UNROLL for (int j = 4; j < 16; j += 4) {
            x = arch::max_of_three(x, score(j), score(j + 1));
            y = arch::max_of_three(y, score(j + 2), score(j + 3));
          }
          float const largest = -arch::fma_down(-static_cast<float>(x > y ? x : y), scale[i], p.log2_p_max);
          tile_max[r] = i == 0 ? largest : arch::max_nan(tile_max[r], largest);
        }
      }
      SAGE_UNROLL for (int i = 0; i < 4 * kNTiles; ++i) {
        uint32_t& s = scores[0][i / 4][i % 4];
        s = arch::as_uint(static_cast<float>(static_cast<int>(s)));
      }
    }

    // Likewise where some keys are not seen or something is added to their scores, or where a step of Q K^T is large.
    // They become base-2 scores, with scales of 1: what is rounded is then the same in the maximum and in the scores.
    SAGE_DEVICE void mask(float (&scale)[kTilesPerStage], int step, float (&tile_max)[2]) {
      SAGE_UNROLL for (int i = 0; i < 4 * kNTiles; ++i) {
        uint32_t& s = scores[0][i / 4][i % 4];
        s = arch::as_uint(static_cast<float>(static_cast<int>(s)) * scale[i / 32]);
      }
      int64_t const col = int64_t{place.first + step * place.direction} * kKeys;
      // Pinned, so that nothing of it is read ahead of the loop and kept in registers.
      tile::mask_scores<true>(scores, 1.f, 0.f, place.visible(p), *arch::pinned(&p.mask), place.batch, place.head,
                              first_row(), col);
      SAGE_UNROLL for (int i = 0; i < kTilesPerStage; ++i)
        scale[i] = 1.f;
      SAGE_UNROLL for (int r = 0; r < 2; ++r) {
        float x = -INFINITY;
        SAGE_UNROLL for (int i = 0; i < 2 * kNTiles; ++i)
          x = arch::max_nan(x, arch::as_float(scores[0][i / 2][2 * r + i % 2]));
        tile_max[r] = -arch::fma_down(-x, 1.f, p.log2_p_max);
      }
    }

    // Takes a maximum into the rows', and brings what was summed to it. A NaN stays in its row.
    SAGE_DEVICE void move_maximum(float (&tile_max)[2]) {
      SAGE_UNROLL for (int r = 0; r < 2; ++r) {
        tile_max[r] = arch::max_nan(tile_max[r], arch::shuffle_xor(tile_max[r], 1));
        tile_max[r] = arch::max_nan(tile_max[r], arch::shuffle_xor(tile_max[r], 2));
      }
      if (!arch::any(!(tile_max[0] <= row_max[0]) || !(tile_max[1] <= row_max[1]))) return;
      SAGE_UNROLL for (int r = 0; r < 2; ++r) {
        float const new_max = arch::max_nan(row_max[r], tile_max[r]);
        float const decay = arch::exp2_approx(row_max[r] - new_max);
        row_max[r] = new_max;
        SAGE_UNROLL for (int n = 0; n <= kOutTiles; ++n) {
          out[n][2 * r] *= decay;
          out[n][2 * r + 1] *= decay;
        }
      }
    }

    // P of 32 keys: the scores of 16 keys of a row become a register of an A fragment of 32.
    SAGE_DEVICE void exponentiate(int i, float scale) {
      SAGE_UNROLL for (int x = 0; x < 4; ++x) {
        int const r = x % 2, n = 4 * i + x / 2 * 2;
        bool const is_linear = kMode == Mode::kApproximateExp && x == 2 + i % 2;
        float y[4];
        SAGE_UNROLL for (int e = 0; e < 4; ++e) {
          y[e] = fmaf(arch::as_float(scores[0][n + e / 2][2 * r + e % 2]), scale, -row_max[r]);
          if (!is_linear) y[e] = arch::exp2_approx(y[e]);
        }
        probabilities[i][x] = is_linear ? linear_codes(y) : arch::round_to_e4m3x4(y[0], y[1], y[2], y[3], 1.f);
      }
    }

    // e4m3 codes of 2^x are 8 (x + 7) where x is an integer; in between they are taken to be linear in x, less the mean
    // of log2(1 + f) - f, so that they are not too large on average.
    SAGE_DEVICE static uint32_t linear_codes(float const (&x)[4]) {
      constexpr float kOffset = 8.f * (7.f - .0573f);
      return arch::round_to_u8x4(fmaf(x[0], 8.f, kOffset), fmaf(x[1], 8.f, kOffset), fmaf(x[2], 8.f, kOffset),
                                 fmaf(x[3], 8.f, kOffset));
    }

    // ---- Sums in float32 ----

    // Adds the accumulators to the sums in shared memory, and empties them. Each thread has its own fragments, the four
    // lanes of a row share the row's maximum and sum.
    SAGE_DEVICE void fold(bool first) {
      int const lane = arch::lane_index(), warp_row = thread / 32 * 16 + lane / 4;
      float factor[2];
      arch::sync_warp();  // the rows of the fold before are visible to the lanes of the row
      SAGE_UNROLL for (int r = 0; r < 2; ++r) {
        float2& row = shared.folded_rows[w][warp_row + r * 8];
        float2 const old = first ? float2{row_max[r], 0.f} : row;
        factor[r] = arch::exp2_approx(old.x - row_max[r]);
        arch::sync_warp();  // all four lanes have read it
        if (lane % 4 == 0) row = {row_max[r], fmaf(old.y, factor[r], out[kOutTiles][2 * r])};
      }
      SAGE_UNROLL for (int n = 0; n < kOutTiles; ++n) {
        float4& sum = shared.folded[w][n][thread];
        float4 const x = first ? float4{0.f, 0.f, 0.f, 0.f} : sum;
        sum = {fmaf(x.x, factor[0], out[n][0]), fmaf(x.y, factor[0], out[n][1]), fmaf(x.z, factor[1], out[n][2]),
               fmaf(x.w, factor[1], out[n][3])};
      }
      clear();
    }

    SAGE_DEVICE void store(bool folded) const {
      arch::sync_warp();  // the rows' sums are visible to the lanes of the row
      store<0>(folded);
      store<1>(folded);
    }

    template <int r>
    SAGE_DEVICE void store(bool folded) const {
      int const warp_row = thread / 32 * 16 + r * 8 + arch::lane_index() / 4;
      int64_t const row = place.row + warp_row;
      float const sum = folded ? shared.folded_rows[w][warp_row].y : out[kOutTiles][2 * r];
      store_row<kHeadDim>(p, place, row, row_max[r], sum, sum, [&](int n, int e) {
        float4 const x = folded ? shared.folded[w][n][thread] : float4{out[n][0], out[n][1], out[n][2], out[n][3]};
        return e ? (r ? x.w : x.y) : (r ? x.z : x.x);
      });
    }
  };
};

}  // namespace sage::sm90
