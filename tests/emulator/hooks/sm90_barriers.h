// sm90: clusters, elect.sync, mbarriers, named barriers, fences, setmaxnreg. What is replaced has CUTLASS's interface.
#pragma once
#include "simt/async_proxy.h"
#include "simt/cluster.h"
#include "simt/mbarrier.h"
#include "simt/sync.h"
#include "simt/warpgroup.h"

#define cluster_arrive_relaxed cluster_arrive_relaxed_ptx_
#define cluster_arrive cluster_arrive_ptx_
#define cluster_wait cluster_wait_ptx_
#define cluster_sync cluster_sync_ptx_
#define cluster_grid_dims cluster_grid_dims_ptx_
#define cluster_id_in_grid cluster_id_in_grid_ptx_
#define block_id_in_cluster block_id_in_cluster_ptx_
#define cluster_shape cluster_shape_ptx_
#define block_rank_in_cluster block_rank_in_cluster_ptx_
#define set_block_rank set_block_rank_ptx_
#define elect_one_sync elect_one_sync_ptx_
#define elect_one_leader_sync elect_one_leader_sync_ptx_
#include <cute/arch/cluster_sm90.hpp>
#undef cluster_arrive_relaxed
#undef cluster_arrive
#undef cluster_wait
#undef cluster_sync
#undef cluster_grid_dims
#undef cluster_id_in_grid
#undef block_id_in_cluster
#undef cluster_shape
#undef block_rank_in_cluster
#undef set_block_rank
#undef elect_one_sync
#undef elect_one_leader_sync

namespace cute {

inline void cluster_arrive_relaxed() { ::simt::cluster_arrive(); }
inline void cluster_arrive() { ::simt::cluster_arrive(); }
inline void cluster_wait() { ::simt::cluster_wait(); }
inline void cluster_sync() {
  ::simt::cluster_arrive();
  ::simt::cluster_wait();
}
inline dim3 cluster_grid_dims() { return gridDim; }
inline dim3 cluster_id_in_grid() { return dim3(blockIdx.x, blockIdx.y, blockIdx.z); }
inline dim3 block_id_in_cluster() { return dim3(0, 0, 0); }
inline dim3 cluster_shape() { return dim3(1, 1, 1); }
inline uint32_t block_rank_in_cluster() { return 0; }
inline uint32_t set_block_rank(uint32_t address, uint32_t rank) {
  ::simt::check_cluster_rank("mapa", rank);
  return address;
}
inline uint32_t elect_one_sync() { return ::simt::self().lane == ::simt::elected_lane(); }
inline ElectOneLaneIdReturnType elect_one_leader_sync() {
  uint32_t const leader = ::simt::elected_lane();
  return {::simt::self().lane == leader, leader};
}

}  // namespace cute

// Reads the headers of TMA, which the next one includes, and defines the functions on mbarriers that they hold.
#include "hooks/tensor_map.h"

#define NamedBarrier NamedBarrier_ptx_
#define ClusterBarrier ClusterBarrier_ptx_
#define ClusterTransactionBarrier ClusterTransactionBarrier_ptx_
#define fence_barrier_init fence_barrier_init_ptx_
#include <cutlass/arch/barrier.h>
#undef NamedBarrier
#undef ClusterBarrier
#undef ClusterTransactionBarrier
#undef fence_barrier_init
#undef fence_view_async_shared  // of hooks/begin_ptx.h

#define warpgroup_reg_alloc warpgroup_reg_alloc_ptx_
#define warpgroup_reg_dealloc warpgroup_reg_dealloc_ptx_
#include <cutlass/arch/reg_reconfig.h>
#undef warpgroup_reg_alloc
#undef warpgroup_reg_dealloc

namespace cutlass::arch {

inline void fence_barrier_init() { ::simt::fence_barrier_init(); }
inline void fence_view_async_shared() { ::simt::fence_proxy_async(); }

template <uint32_t kRegisters>
void warpgroup_reg_alloc() {
  ::simt::set_max_registers(kRegisters, true);
}
template <uint32_t kRegisters>
void warpgroup_reg_dealloc() {
  ::simt::set_max_registers(kRegisters, false);
}

class NamedBarrier {
 public:
  static constexpr uint32_t ReservedNamedBarrierCount = static_cast<uint32_t>(ReservedNamedBarriers::FirstUserBarrier);
  static constexpr uint32_t HardwareMaxNumNamedBarriers = 16;

  NamedBarrier(uint32_t num_threads, ReservedNamedBarriers id)
      : num_threads_(num_threads), id_(static_cast<uint32_t>(id)) {}
  NamedBarrier(uint32_t num_threads, uint32_t id = 0)
      : num_threads_(num_threads), id_(id + ReservedNamedBarrierCount) {}

  void arrive_and_wait() const { ::simt::bar_sync(id_, num_threads_); }
  void arrive_and_wait_unaligned() const { ::simt::bar_sync(id_, num_threads_); }
  void sync() const { ::simt::bar_sync(id_, num_threads_); }
  void arrive() const { ::simt::bar_arrive(id_, num_threads_); }
  void arrive_unaligned() const { ::simt::bar_arrive(id_, num_threads_); }

  static void arrive_and_wait(uint32_t num_threads, uint32_t id) { NamedBarrier(num_threads, id).sync(); }
  static void arrive_and_wait(uint32_t num_threads, ReservedNamedBarriers id) { NamedBarrier(num_threads, id).sync(); }
  static void sync(uint32_t num_threads, uint32_t id) { NamedBarrier(num_threads, id).sync(); }
  static void sync(uint32_t num_threads, ReservedNamedBarriers id) { NamedBarrier(num_threads, id).sync(); }
  static void arrive(uint32_t num_threads, uint32_t id) { NamedBarrier(num_threads, id).arrive(); }
  static void arrive(uint32_t num_threads, ReservedNamedBarriers id) { NamedBarrier(num_threads, id).arrive(); }

 private:
  uint32_t const num_threads_, id_;
};

// `pred` of the predicated operations must be 0 or 1; `block` is the rank of a block in the cluster.
struct ClusterBarrier {
  using ValueType = uint64_t;

 protected:
  ValueType barrier_;

 public:
  ClusterBarrier() = delete;

  void init(uint32_t count) const { init(&barrier_, count); }
  bool test_wait(uint32_t phase, uint32_t pred = true) const { return test_wait(&barrier_, phase, pred); }
  bool try_wait(uint32_t phase) const { return try_wait(&barrier_, phase); }
  void wait(uint32_t phase) const { wait(&barrier_, phase); }
  void arrive() const { arrive(&barrier_); }
  void arrive(uint32_t block, uint32_t pred = true) const { arrive(&barrier_, block, pred); }

  static void init(ValueType const* p, uint32_t count) {
    ::simt::mbar_init(p, count);
    ::simt::note_barrier_init(p);
  }
  static void wait(ValueType const* p, uint32_t phase) { ::simt::mbar_wait(p, phase); }
  static bool test_wait(ValueType const* p, uint32_t phase, uint32_t pred) { return pred && try_wait(p, phase); }
  static bool try_wait(ValueType const* p, uint32_t phase) { return ::simt::mbar_poll(p, phase); }
  static void arrive(ValueType const* p) { ::simt::mbar_arrive(p); }
  static void arrive(ValueType const* p, uint32_t block, uint32_t pred) {
    if (!pred) return;
    ::simt::check_cluster_rank("mbarrier.arrive", block);
    ::simt::mbar_arrive(p);
  }
  static void invalidate(ValueType const* p) { ::simt::mbar_invalidate(p); }
};

struct ClusterTransactionBarrier : ClusterBarrier {
  ClusterTransactionBarrier() = delete;

  void arrive_and_expect_tx(uint32_t bytes) const { arrive_and_expect_tx(&barrier_, bytes); }
  void arrive_and_expect_tx(uint32_t bytes, uint32_t block, uint32_t pred = 1) const {
    arrive_and_expect_tx(&barrier_, bytes, block, pred);
  }
  void expect_transaction(uint32_t bytes) const { expect_transaction(&barrier_, bytes); }
  void complete_transaction(uint32_t bytes, uint32_t pred = 1) const {
    complete_transaction(&barrier_, 0, bytes, pred);
  }
  void complete_transaction(uint32_t block, uint32_t bytes, uint32_t pred) const {
    complete_transaction(&barrier_, block, bytes, pred);
  }

  static void arrive_and_expect_tx(ValueType const* p, uint32_t bytes) {
    ::simt::mbar_expect_tx(p, bytes);
    ::simt::mbar_arrive(p);
  }
  static void arrive_and_expect_tx(ValueType const* p, uint32_t bytes, uint32_t block, uint32_t pred) {
    if (!pred) return;
    ::simt::check_cluster_rank("mbarrier.arrive.expect_tx", block);
    arrive_and_expect_tx(p, bytes);
  }
  static void expect_transaction(ValueType const* p, uint32_t bytes) { ::simt::mbar_expect_tx(p, bytes); }
  static void complete_transaction(ValueType const* p, uint32_t block, uint32_t bytes, uint32_t pred = 1) {
    if (!pred) return;
    ::simt::check_cluster_rank("mbarrier.complete_tx", block);
    ::simt::mbar_complete_tx(p, bytes);
  }
};

}  // namespace cutlass::arch

#define warpgroup_arrive warpgroup_arrive_ptx_
#define warpgroup_wait warpgroup_wait_ptx_
#define warpgroup_commit_batch warpgroup_commit_batch_ptx_
#define warpgroup_fence_operand warpgroup_fence_operand_ptx_
#include <cute/arch/mma_sm90_gmma.hpp>
#undef warpgroup_arrive
#undef warpgroup_wait
#undef warpgroup_commit_batch
#undef warpgroup_fence_operand

namespace cute {

inline void warpgroup_arrive() { ::simt::wgmma_fence(); }
inline void warpgroup_commit_batch() { ::simt::wgmma_commit(); }
// For nvcc: keeps a register where it is. wgmma_issue gets the address of each.
inline void warpgroup_fence_operand(uint32_t&) {}
inline void warpgroup_fence_operand(float&) {}
template <int N>
void warpgroup_wait() {
  static_assert(N >= 0 && N <= 7, "wgmma.wait_group takes 0 to 7");
  ::simt::wgmma_wait(N);
}

}  // namespace cute
