// The copy engine of sm90: tensor copies through a tensor map (TMA) and plain bulk copies (cp.async.bulk).
//
// A copy happens at some point between its issue and the end of the wait for it (AsyncTiming). Loads report to an
// mbarrier, stores to the groups of the issuing thread. PTX ISA 9.7.9.27.
#pragma once
#include <cuda.h>

#include <cstdint>

#include "simt/machine.h"

namespace simt {

constexpr int kMaxTensorRank = 5;

// What our cuTensorMapEncodeTiled writes into a CUtensorMap.
struct TensorMap {
  uint64_t magic;
  uint64_t address;
  uint64_t stride[kMaxTensorRank - 1];  // bytes from one index of dimension i + 1 to the next
  uint32_t dim[kMaxTensorRank];         // elements
  uint16_t box[kMaxTensorRank];         // elements
  uint8_t rank;
  uint8_t element_bits;
  uint8_t type;     // CUtensorMapDataType
  uint8_t swizzle;  // b: bits 4 .. 4 + b - 1 of the shared address are XORed with bits 7 .. 7 + b - 1
};
static_assert(sizeof(TensorMap) <= sizeof(CUtensorMap));

// The checks of the driver's cuTensorMapEncodeTiled; throws Error for what it refuses and for what is not emulated.
TensorMap make_tensor_map(CUtensorMapDataType type, uint32_t rank, void const* address, uint64_t const* dim,
                          uint64_t const* stride, uint32_t const* box, uint32_t const* element_stride,
                          CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle, CUtensorMapFloatOOBfill fill);

// The shared address at which the byte lies that a dense box would have at `offset`.
inline uint32_t swizzled(uint32_t offset, int bits) { return offset ^ ((offset >> 3) & (((1u << bits) - 1) << 4)); }

// Elements outside of the tensor are loaded as zeros, and are neither stored nor added. Coordinates are in elements.
void tma_load(void const* map, void const* mbarrier, void* smem, int rank, int32_t const* coordinates);
void tma_store(void const* map, void const* smem, int rank, int32_t const* coordinates);
void tma_reduce_add(void const* map, void const* smem, int rank, int32_t const* coordinates);
void tma_prefetch(void const* map);  // checks the map
void bulk_load(void* smem, void const* global, uint32_t bytes, void const* mbarrier);
void bulk_store(void* global, void const* smem, uint32_t bytes);

void bulk_commit_group();
void bulk_wait_group(int pending);  // until at most `pending` of this thread's committed groups are unfinished

}  // namespace simt
