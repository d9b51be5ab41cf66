// Copies of whole blocks of memory by the copy engine, one thread each (PTX ISA, cp.async.bulk).
#pragma once
#include <cstdint>
#include <cute/arch/copy_sm90_tma.hpp>

#include "common/macros.h"

namespace sage::arch {

// From global to shared memory, both aligned to 16 bytes, of a multiple of 16 bytes, which `barrier` of the block's
// shared memory counts as they arrive.
SAGE_DEVICE void bulk_copy(void* smem, void const* gmem, int bytes, uint64_t& barrier) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
  // To .shared::cluster, as CUTLASS has it, ptxas calls a function first, and for its sake ignores setmaxnreg.
  asm volatile("cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               :
               : "r"(cute::cast_smem_ptr_to_uint(smem)), "l"(gmem), "r"(bytes),
                 "r"(cute::cast_smem_ptr_to_uint(&barrier))
               : "memory");
#else
  cute::SM90_BULK_COPY_G2S::copy(gmem, &barrier, smem, bytes);
#endif
}

}  // namespace sage::arch
