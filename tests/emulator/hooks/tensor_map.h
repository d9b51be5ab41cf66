// TMA and bulk copies, and the mbarrier functions of the same headers: the atoms are replaced as a whole; make_tma_copy
// is CUTLASS's and calls the cuTensorMapEncodeTiled of simt/tma.cpp.
#pragma once
#include "simt/async_proxy.h"
#include "simt/cluster.h"
#include "simt/mbarrier.h"
#include "simt/tma.h"

#define SM90_TMA_LOAD SM90_TMA_LOAD_ptx_
#define SM90_TMA_LOAD_MULTICAST SM90_TMA_LOAD_MULTICAST_ptx_
#define SM90_TMA_STORE SM90_TMA_STORE_ptx_
#define SM90_TMA_REDUCE_ADD SM90_TMA_REDUCE_ADD_ptx_
#define SM90_BULK_COPY_G2S SM90_BULK_COPY_G2S_ptx_
#define SM90_BULK_COPY_S2G SM90_BULK_COPY_S2G_ptx_
#define tma_store_fence tma_store_fence_ptx_
#define tma_store_arrive tma_store_arrive_ptx_
#define tma_store_wait tma_store_wait_ptx_
#define initialize_barrier initialize_barrier_ptx_
#define set_barrier_transaction_bytes set_barrier_transaction_bytes_ptx_
#define wait_barrier wait_barrier_ptx_
#define arrive_barrier arrive_barrier_ptx_
#define prefetch_tma_descriptor prefetch_tma_descriptor_ptx_
#include <cute/arch/copy_sm90.hpp>
#undef SM90_TMA_LOAD
#undef SM90_TMA_LOAD_MULTICAST
#undef SM90_TMA_STORE
#undef SM90_TMA_REDUCE_ADD
#undef SM90_BULK_COPY_G2S
#undef SM90_BULK_COPY_S2G
#undef tma_store_fence
#undef tma_store_arrive
#undef tma_store_wait
#undef initialize_barrier
#undef set_barrier_transaction_bytes
#undef wait_barrier
#undef arrive_barrier
#undef prefetch_tma_descriptor

namespace cute {

struct SM90_TMA_LOAD {
  template <class... Coordinates>
  static void copy(void const* map, uint64_t* mbarrier, uint64_t /*cache_hint*/, void* smem,
                   Coordinates const&... coordinates) {
    int32_t const all[] = {int32_t{coordinates}...};
    ::simt::tma_load(map, mbarrier, smem, sizeof...(Coordinates), all);
  }

  struct PREFETCH {
    template <class... Coordinates>
    static void copy(void const* map, Coordinates const&...) {
      ::simt::tma_prefetch(map);
    }
  };
};

struct SM90_TMA_LOAD_MULTICAST {
  template <class... Coordinates>
  static void copy(void const* map, uint64_t* mbarrier, uint16_t multicast_mask, uint64_t cache_hint, void* smem,
                   Coordinates const&... coordinates) {
    if (multicast_mask != 1) {
      ::simt::fail("TMA multicast to the blocks of mask 0x%x of a cluster; only clusters of one block are emulated",
                   multicast_mask);
    }
    SM90_TMA_LOAD::copy(map, mbarrier, cache_hint, smem, coordinates...);
  }
};

struct SM90_TMA_STORE {
  template <class... Coordinates>
  static void copy(void const* map, void const* smem, Coordinates const&... coordinates) {
    int32_t const all[] = {int32_t{coordinates}...};
    ::simt::tma_store(map, smem, sizeof...(Coordinates), all);
  }
};

struct SM90_TMA_REDUCE_ADD {
  template <class... Coordinates>
  static void copy(void const* map, void const* smem, Coordinates const&... coordinates) {
    int32_t const all[] = {int32_t{coordinates}...};
    ::simt::tma_reduce_add(map, smem, sizeof...(Coordinates), all);
  }
};

struct SM90_BULK_COPY_G2S {
  static void copy(void const* global, uint64_t* mbarrier, void* smem, int32_t bytes) {
    ::simt::bulk_load(smem, global, static_cast<uint32_t>(bytes), mbarrier);
  }

  struct PREFETCH {
    static void copy(void const*, int32_t) {}
  };
};

struct SM90_BULK_COPY_S2G {
  static void copy(void const* smem, void* global, int32_t bytes) {
    ::simt::bulk_store(global, smem, static_cast<uint32_t>(bytes));
  }
};

inline void tma_store_fence() { ::simt::fence_proxy_async(); }
inline void tma_store_arrive() { ::simt::bulk_commit_group(); }
template <int N>
void tma_store_wait() {
  ::simt::bulk_wait_group(N);
}

inline void prefetch_tma_descriptor(TmaDescriptor const* map) { ::simt::tma_prefetch(map); }
inline void initialize_barrier(uint64_t& barrier, int count = 1) {
  ::simt::mbar_init(&barrier, static_cast<uint32_t>(count));
  ::simt::note_barrier_init(&barrier);
}
inline void set_barrier_transaction_bytes(uint64_t& barrier, uint32_t bytes) {
  ::simt::mbar_expect_tx(&barrier, bytes);
  ::simt::mbar_arrive(&barrier);
}
inline void wait_barrier(uint64_t& barrier, int phase) { ::simt::mbar_wait(&barrier, static_cast<uint32_t>(phase)); }
inline void arrive_barrier(uint64_t& barrier) { ::simt::mbar_arrive(&barrier); }

}  // namespace cute
