// Between this file and hooks/end_ptx.h CUTLASS's headers of PTX wrappers are read. Their functions stay out of line
// and get the ABI tag "ptx", so that an object file in which one of them is used, instead of a replacement in hooks/,
// says so in its symbol table: on the host such a function does nothing at all (tests/emulator/unhooked_ptx.py). What
// those headers include and what holds no PTX comes first, untagged.
#pragma once
// g++ warns of a function that is declared before its definition, `inline` and out of line, unless its name is spelled
// in a system header; there is one, fence_view_async_shared, and sm90_barriers.h renames it.
#pragma GCC system_header
#define fence_view_async_shared fence_view_async_shared_ptx_

#include <cutlass/array.h>
#include <cutlass/complex.h>
#include <cutlass/layout/matrix.h>
#include <cutlass/numeric_types.h>
#include <cute/arch/copy.hpp>
#include <cute/arch/mma.hpp>
#include <cute/arch/mma_sm100_desc.hpp>
#include <cute/arch/mma_sm90_desc.hpp>
#include <cute/container/array.hpp>
#include <cute/container/array_subbyte.hpp>
#include <cute/container/bit_field.hpp>
#include <cute/container/tuple.hpp>
#include <cute/layout.hpp>
#include <cute/numeric/numeric_types.hpp>
#include <cutlass/arch/synclog.hpp>

#pragma push_macro("CUTE_DEVICE")
#pragma push_macro("CUTE_HOST_DEVICE")
#pragma push_macro("CUTLASS_DEVICE")
#pragma push_macro("CUTLASS_HOST_DEVICE")
#undef CUTE_DEVICE
#undef CUTE_HOST_DEVICE
#undef CUTLASS_DEVICE
#undef CUTLASS_HOST_DEVICE
#define CUTE_DEVICE inline __attribute__((noipa, abi_tag("ptx")))
#define CUTE_HOST_DEVICE CUTE_DEVICE
#define CUTLASS_DEVICE CUTE_DEVICE
#define CUTLASS_HOST_DEVICE CUTE_DEVICE
