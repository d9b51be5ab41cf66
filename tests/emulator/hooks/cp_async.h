// cp.async: the atoms are replaced as a whole, because the traits of the zero-filling ones call them directly.
#pragma once
#include "simt/async_copy.h"

#define SM80_CP_ASYNC_CACHEALWAYS SM80_CP_ASYNC_CACHEALWAYS_ptx_
#define SM80_CP_ASYNC_CACHEGLOBAL SM80_CP_ASYNC_CACHEGLOBAL_ptx_
#define SM80_CP_ASYNC_CACHEALWAYS_ZFILL SM80_CP_ASYNC_CACHEALWAYS_ZFILL_ptx_
#define SM80_CP_ASYNC_CACHEGLOBAL_ZFILL SM80_CP_ASYNC_CACHEGLOBAL_ZFILL_ptx_
#define cp_async_fence cp_async_fence_ptx_
#define cp_async_wait cp_async_wait_ptx_
#include <cute/arch/copy_sm80.hpp>
#undef SM80_CP_ASYNC_CACHEALWAYS
#undef SM80_CP_ASYNC_CACHEGLOBAL
#undef SM80_CP_ASYNC_CACHEALWAYS_ZFILL
#undef SM80_CP_ASYNC_CACHEGLOBAL_ZFILL
#undef cp_async_fence
#undef cp_async_wait

namespace cute {

template <class TS, class TD = TS>
struct SM80_CP_ASYNC_CACHEALWAYS {
  using SRegisters = TS[1];
  using DRegisters = TD[1];
  static_assert(sizeof(TS) == sizeof(TD) && (sizeof(TS) == 4 || sizeof(TS) == 8 || sizeof(TS) == 16),
                "cp.async copies 4, 8 or 16 bytes");
  static void copy(TS const& source, TD& destination) {
    ::simt::cp_async(&destination, &source, sizeof(TS), sizeof(TS));
  }
};

template <class TS, class TD = TS>
struct SM80_CP_ASYNC_CACHEALWAYS_ZFILL {
  using SRegisters = TS[1];
  using DRegisters = TD[1];
  static_assert(sizeof(TS) == sizeof(TD) && (sizeof(TS) == 4 || sizeof(TS) == 8 || sizeof(TS) == 16),
                "cp.async copies 4, 8 or 16 bytes");
  static void copy(TS const& source, TD& destination, bool predicate) {
    ::simt::cp_async(&destination, &source, sizeof(TS), predicate ? sizeof(TS) : 0);
  }
};

// .cg, past the first cache, exists for 16 bytes alone.
template <class TS, class TD = TS>
struct SM80_CP_ASYNC_CACHEGLOBAL : SM80_CP_ASYNC_CACHEALWAYS<TS, TD> {
  static_assert(sizeof(TS) == 16, "cp.async.cg copies 16 bytes");
};
template <class TS, class TD = TS>
struct SM80_CP_ASYNC_CACHEGLOBAL_ZFILL : SM80_CP_ASYNC_CACHEALWAYS_ZFILL<TS, TD> {
  static_assert(sizeof(TS) == 16, "cp.async.cg copies 16 bytes");
};

inline void cp_async_fence() { ::simt::cp_async_commit(); }
template <int N>
void cp_async_wait() {
  if constexpr (N == 0) {
    ::simt::cp_async_wait_all();  // as CUTLASS: also of copies that are in no group yet
  } else {
    ::simt::cp_async_wait_group(N);
  }
}
template <int N>
void cp_async_wait(Int<N>) {
  cp_async_wait<N>();
}

}  // namespace cute
