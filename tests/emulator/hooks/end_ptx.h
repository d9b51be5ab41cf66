// The rest of CUTLASS's PTX wrappers, and the end of what hooks/begin_ptx.h begins.
#pragma once
#include <cutlass/arch/memory.h>
#include <cute/arch/copy_sm100.hpp>
#include <cute/arch/copy_sm50.hpp>
#include <cute/arch/copy_sm75.hpp>
#include <cute/arch/mma_sm100.hpp>
#include <cute/arch/mma_sm100_umma.hpp>
#include <cute/arch/mma_sm120.hpp>
#include <cute/arch/mma_sm120_sparse.hpp>
#include <cute/arch/mma_sm61.hpp>
#include <cute/arch/mma_sm70.hpp>
#include <cute/arch/mma_sm75.hpp>
#include <cute/arch/mma_sm80.hpp>
#include <cute/arch/mma_sm89.hpp>
#include <cute/arch/mma_sm90.hpp>
#include <cute/arch/mma_sm90_gmma_ext.hpp>
#include <cute/arch/mma_sm90_gmma_sparse.hpp>
#include <cute/arch/simd_sm100.hpp>

#pragma pop_macro("CUTE_DEVICE")
#pragma pop_macro("CUTE_HOST_DEVICE")
#pragma pop_macro("CUTLASS_DEVICE")
#pragma pop_macro("CUTLASS_HOST_DEVICE")
