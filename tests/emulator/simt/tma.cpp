#include "simt/tma.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <utility>

#include "simt/async_copy.h"
#include "simt/async_proxy.h"
#include "simt/mbarrier.h"

namespace simt {
namespace {

constexpr uint64_t kMagic = 0x70616d20726f736eu;
constexpr uint32_t kMapAlignment = 64, kSharedAlignment = 128, kBulkAlignment = 16;

uint32_t bits_of(CUtensorMapDataType type) {
  switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_16U4_ALIGN8B: return 4;
    case CU_TENSOR_MAP_DATA_TYPE_UINT8: return 8;
    case CU_TENSOR_MAP_DATA_TYPE_UINT16:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16: return 16;
    case CU_TENSOR_MAP_DATA_TYPE_UINT32:
    case CU_TENSOR_MAP_DATA_TYPE_INT32:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT32:
    case CU_TENSOR_MAP_DATA_TYPE_TFLOAT32: return 32;
    case CU_TENSOR_MAP_DATA_TYPE_UINT64:
    case CU_TENSOR_MAP_DATA_TYPE_INT64:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT64: return 64;
    default: fail("cuTensorMapEncodeTiled: tensorDataType %d is not emulated", static_cast<int>(type));
  }
}

uint8_t swizzle_bits(CUtensorMapSwizzle swizzle) {
  switch (swizzle) {
    case CU_TENSOR_MAP_SWIZZLE_NONE: return 0;
    case CU_TENSOR_MAP_SWIZZLE_32B: return 1;
    case CU_TENSOR_MAP_SWIZZLE_64B: return 2;
    case CU_TENSOR_MAP_SWIZZLE_128B: return 3;
    default: fail("cuTensorMapEncodeTiled: swizzle %d is not emulated", static_cast<int>(swizzle));
  }
}

void check_multiple(char const* field, uint64_t value, uint64_t of) {
  if (value % of != 0) {
    fail("cuTensorMapEncodeTiled: %s must be a multiple of %llu, got %llu", field, static_cast<unsigned long long>(of),
         static_cast<unsigned long long>(value));
  }
}

void check_range(char const* field, uint64_t value, uint64_t least, uint64_t most) {
  if (value < least || value > most) {
    fail("cuTensorMapEncodeTiled: %s must be %llu to %llu, got %llu", field, static_cast<unsigned long long>(least),
         static_cast<unsigned long long>(most), static_cast<unsigned long long>(value));
  }
}

TensorMap const& checked_map(char const* what, void const* map) {
  if (reinterpret_cast<uintptr_t>(map) % kMapAlignment != 0) {
    fail("%s: the tensor map at %p is not aligned to %u bytes", what, map, kMapAlignment);
  }
  auto const& tensor_map = *static_cast<TensorMap const*>(map);
  if (tensor_map.magic != kMagic) fail("%s: there is no tensor map at %p", what, map);
  return tensor_map;
}

// A box of a tensor and where it is in shared memory.
struct Box {
  TensorMap map;
  uint32_t offset;  // shared
  int32_t coordinates[kMaxTensorRank];

  uint32_t row_bytes() const { return map.box[0] * map.element_bits / 8; }
  uint32_t bytes() const {
    uint32_t product = row_bytes();
    for (int i = 1; i < map.rank; ++i) product *= map.box[i];
    return product;
  }
};

Box checked_box(char const* what, void const* map, void const* smem, int rank, int32_t const* coordinates) {
  Box box{checked_map(what, map), smem_offset(smem), {}};
  if (rank != box.map.rank) fail("%s: %d coordinates for a tensor map of rank %d", what, rank, box.map.rank);
  std::copy_n(coordinates, rank, box.coordinates);
  check_smem(what, box.offset, box.bytes(), kSharedAlignment);
  if (box.map.element_bits < 8 && box.coordinates[0] % 2 != 0) {
    fail("%s: the first coordinate must be even for elements of %d bits, got %d", what, box.map.element_bits,
         box.coordinates[0]);
  }
  return box;
}

// piece(global, shared offset, bytes) for every piece of the box that is contiguous on both sides; `global` is nullptr
// where the tensor ends. A piece is at most 16 bytes, the unit of the swizzle.
template <class Piece>
void for_each_piece(Box const& box, Piece&& piece) {
  constexpr uint32_t kPieceBytes = 16;
  TensorMap const& map = box.map;
  uint32_t const row_bytes = box.row_bytes(), num_rows = box.bytes() / row_bytes;
  int64_t const tensor_row_bytes = int64_t{map.dim[0]} * map.element_bits / 8;
  int64_t const first_byte = int64_t{box.coordinates[0]} * map.element_bits / 8;
  uint32_t index[kMaxTensorRank] = {};
  for (uint32_t row = 0; row < num_rows; ++row) {
    auto* global = reinterpret_cast<char*>(map.address);
    bool inside = true;
    for (int i = 1; i < map.rank; ++i) {
      int64_t const x = int64_t{box.coordinates[i]} + index[i];
      inside = inside && x >= 0 && x < int64_t{map.dim[i]};
      global += x * static_cast<int64_t>(map.stride[i - 1]);
    }
    for (uint32_t byte = 0; byte < row_bytes; byte += kPieceBytes) {
      uint32_t const shared = swizzled(box.offset + row * row_bytes + byte, map.swizzle);
      int64_t const x = first_byte + byte;
      int64_t const begin = std::clamp<int64_t>(-x, 0, kPieceBytes);
      int64_t const end = inside ? std::clamp<int64_t>(tensor_row_bytes - x, begin, kPieceBytes) : begin;
      if (begin > 0) piece(nullptr, shared, static_cast<uint32_t>(begin));
      if (end > begin) piece(global + x + begin, static_cast<uint32_t>(shared + begin), end - begin);
      if (end < kPieceBytes) piece(nullptr, static_cast<uint32_t>(shared + end), kPieceBytes - end);
    }
    for (int i = 1; i < map.rank && ++index[i] == map.box[i]; ++i) index[i] = 0;
  }
}

template <class T>
void add(char* sum, char const* x, uint32_t bytes) {
  for (uint32_t i = 0; i < bytes; i += sizeof(T)) {
    T a, b;
    std::memcpy(static_cast<void*>(&a), sum + i, sizeof(T));
    std::memcpy(static_cast<void*>(&b), x + i, sizeof(T));
    if constexpr (sizeof(T) == 2) {
      a = T(float(a) + float(b));
    } else {
      a += b;
    }
    std::memcpy(sum + i, static_cast<void const*>(&a), sizeof(T));
  }
}

void add(CUtensorMapDataType type, char* sum, char const* x, uint32_t bytes) {
  static std::mutex mutex;  // blocks run on several OS threads
  std::lock_guard const lock(mutex);
  switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16: return add<__half>(sum, x, bytes);
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16: return add<__nv_bfloat16>(sum, x, bytes);
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT32: return add<float>(sum, x, bytes);
    case CU_TENSOR_MAP_DATA_TYPE_INT32:
    case CU_TENSOR_MAP_DATA_TYPE_UINT32: return add<uint32_t>(sum, x, bytes);
    case CU_TENSOR_MAP_DATA_TYPE_UINT64: return add<uint64_t>(sum, x, bytes);
    default: fail("TMA reduce: tensorDataType %d cannot be added", static_cast<int>(type));
  }
}

// ---- Loads: from the issue on shared memory is undefined, until the mbarrier says that it is there ----------------

template <class Copy>  // copy(): writes shared memory
void issue_load(char const* what, uint32_t offset, uint32_t bytes, void const* mbarrier, Copy const& copy) {
  mbar_get(mbarrier, what);
  check_visible("the copy engine uses", smem_offset(mbarrier), 8);
  note_async_write("the copy engine overwrites", offset, bytes);
  {
    NoTrack no_track;
    begin_flight(offset, bytes);
  }
  push_engine_op([=] {
    Cta const& cta = machine().cta;
    if (cta.nexited == cta.nthreads)
      fail("%s to shared address %u: the block exits without waiting for it", what, offset);
    note_write(cta.smem + offset, bytes);
    {
      NoTrack no_track;
      end_flight(offset, bytes);
    }
    copy();
    mbar_complete_tx(mbarrier, bytes);
  });
}

// ---- Stores: shared memory must stay as it is until the group has been waited for ---------------------------------

void wake_bulk_waiter(Thread& thread, Sm90Thread& state);

template <class Copy>  // copy(): reads shared memory
void issue_store(char const* what, uint32_t offset, uint32_t bytes, Copy const& copy) {
  check_landed(what, offset, bytes);
  check_visible("the copy engine reads", offset, bytes);
  Thread& issuer = self();
  Sm90Thread& state = sm90_thread();
  ++state.bulk_groups.back();
  uint64_t const group = state.bulk_first_group + state.bulk_groups.size() - 1;
  push_engine_op([=, &issuer, &state] {
    check_landed(what, offset, bytes);
    check_visible("before tma_store_wait, while the copy engine reads it, a thread stored to", offset, bytes);
    note_read(machine().cta.smem + offset, bytes);
    copy();
    hb_release(&state);
    NoTrack no_track;
    --state.bulk_groups[group - state.bulk_first_group];
    wake_bulk_waiter(issuer, state);
  });
}

void drop_finished_groups(Sm90Thread& state) {
  while (state.bulk_groups.size() > 1 && state.bulk_groups.front() == 0) {
    state.bulk_groups.pop_front();
    ++state.bulk_first_group;
  }
}

bool few_groups_left(Sm90Thread& state, int pending) {
  drop_finished_groups(state);
  return static_cast<int>(state.bulk_groups.size()) - 1 <= pending;
}

void wake_bulk_waiter(Thread& thread, Sm90Thread& state) {
  if (state.bulk_waiting_for < 0 || !few_groups_left(state, state.bulk_waiting_for)) return;
  state.bulk_waiting_for = -1;
  push_ready(thread);
}

}  // namespace

TensorMap make_tensor_map(CUtensorMapDataType type, uint32_t rank, void const* address, uint64_t const* dim,
                          uint64_t const* stride, uint32_t const* box, uint32_t const* element_stride,
                          CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle, CUtensorMapFloatOOBfill fill) {
  constexpr uint64_t kMaxDim = uint64_t{1} << 32, kMaxStride = uint64_t{1} << 40;
  constexpr uint32_t kMaxBox = 256;
  check_range("tensorRank", rank, 1, kMaxTensorRank);
  if (interleave != CU_TENSOR_MAP_INTERLEAVE_NONE) fail("cuTensorMapEncodeTiled: interleave is not emulated");
  if (fill != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) fail("cuTensorMapEncodeTiled: oobFill with NaN is not emulated");
  TensorMap map{};
  map.magic = kMagic;
  map.address = reinterpret_cast<uintptr_t>(address);
  map.rank = static_cast<uint8_t>(rank);
  map.element_bits = static_cast<uint8_t>(bits_of(type));
  map.type = static_cast<uint8_t>(type);
  map.swizzle = swizzle_bits(swizzle);
  if (address == nullptr) fail("cuTensorMapEncodeTiled: globalAddress is null");
  check_multiple("globalAddress", map.address, 16);
  for (uint32_t i = 0; i < rank; ++i) {
    check_range("globalDim", dim[i], 1, kMaxDim - 1);  // 2^32 itself is allowed, but does not fit TensorMap::dim
    check_range("boxDim", box[i], 1, kMaxBox);
    if (element_stride[i] != 1)
      fail("cuTensorMapEncodeTiled: elementStrides must be 1 here, got %u", element_stride[i]);
    map.dim[i] = static_cast<uint32_t>(dim[i]);
    map.box[i] = static_cast<uint16_t>(box[i]);
    if (i + 1 == rank) continue;
    check_multiple("globalStrides", stride[i], 16);
    check_range("globalStrides", stride[i], 0, kMaxStride - 1);
    map.stride[i] = stride[i];
  }
  uint32_t const row_bytes = map.box[0] * map.element_bits / 8;
  check_multiple("boxDim[0] in bytes", uint64_t{map.box[0]} * map.element_bits, 8 * 16);
  if (map.element_bits < 8) check_multiple("globalDim[0]", dim[0], 2);
  // The hardware allows narrower rows too; how it then lays them out is not modelled.
  uint32_t const span = 16u << map.swizzle;
  if (map.swizzle && row_bytes != span) {
    fail("cuTensorMapEncodeTiled: boxDim[0] must have the %u bytes of the swizzle, got %u", span, row_bytes);
  }
  return map;
}

void tma_load(void const* map, void const* mbarrier, void* smem, int rank, int32_t const* coordinates) {
  Box const box = checked_box("TMA load", map, smem, rank, coordinates);
  issue_load("TMA load", box.offset, box.bytes(), mbarrier, [box] {
    for_each_piece(box, [](char const* global, uint32_t shared, uint32_t bytes) {
      if (global) {
        std::memcpy(machine().cta.smem + shared, global, bytes);
      } else {
        std::memset(machine().cta.smem + shared, 0, bytes);
      }
    });
  });
}

void tma_store(void const* map, void const* smem, int rank, int32_t const* coordinates) {
  Box const box = checked_box("TMA store", map, smem, rank, coordinates);
  issue_store("TMA store", box.offset, box.bytes(), [box] {
    for_each_piece(box, [](char* global, uint32_t shared, uint32_t bytes) {
      if (global) std::memcpy(global, machine().cta.smem + shared, bytes);
    });
  });
}

void tma_reduce_add(void const* map, void const* smem, int rank, int32_t const* coordinates) {
  Box const box = checked_box("TMA reduce", map, smem, rank, coordinates);
  issue_store("TMA reduce", box.offset, box.bytes(), [box] {
    for_each_piece(box, [&box](char* global, uint32_t shared, uint32_t bytes) {
      if (global) add(static_cast<CUtensorMapDataType>(box.map.type), global, machine().cta.smem + shared, bytes);
    });
  });
}

void tma_prefetch(void const* map) { checked_map("TMA prefetch", map); }

void bulk_load(void* smem, void const* global, uint32_t bytes, void const* mbarrier) {
  uint32_t const offset = smem_offset(smem);
  check_smem("bulk copy", offset, bytes, kBulkAlignment);
  if (bytes % kBulkAlignment || reinterpret_cast<uintptr_t>(global) % kBulkAlignment) {
    fail("bulk copy: %u bytes from %p; both must be multiples of %u", bytes, global, kBulkAlignment);
  }
  issue_load("bulk copy", offset, bytes, mbarrier, [=] { std::memcpy(machine().cta.smem + offset, global, bytes); });
}

void bulk_store(void* global, void const* smem, uint32_t bytes) {
  uint32_t const offset = smem_offset(smem);
  check_smem("bulk store", offset, bytes, kBulkAlignment);
  if (bytes % kBulkAlignment || reinterpret_cast<uintptr_t>(global) % kBulkAlignment) {
    fail("bulk store: %u bytes to %p; both must be multiples of %u", bytes, global, kBulkAlignment);
  }
  issue_store("bulk store", offset, bytes, [=] { std::memcpy(global, machine().cta.smem + offset, bytes); });
}

void bulk_commit_group() {
  NoTrack no_track;
  sm90_thread().bulk_groups.push_back(0);
}

void bulk_wait_group(int pending) {
  Sm90Thread& state = sm90_thread();
  {
    NoTrack no_track;
    if (!few_groups_left(state, pending)) {
      state.bulk_waiting_for = pending;
      block_on("cp.async.bulk.wait_group", 1u << self().lane, self().index / 32);
    }
  }
  hb_acquire(&state);
}

}  // namespace simt

// The driver's, which make_tma_copy calls. It reports what is wrong by throwing.
extern "C" CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address,
                                           cuuint64_t const* dim, cuuint64_t const* stride, cuuint32_t const* box,
                                           cuuint32_t const* element_stride, CUtensorMapInterleave interleave,
                                           CUtensorMapSwizzle swizzle, CUtensorMapL2promotion /*promotion*/,
                                           CUtensorMapFloatOOBfill fill) {
  static_assert(sizeof(cuuint64_t) == sizeof(uint64_t) && sizeof(cuuint32_t) == sizeof(uint32_t));
  simt::TensorMap const encoded =
      simt::make_tensor_map(type, rank, address, reinterpret_cast<uint64_t const*>(dim),
                            reinterpret_cast<uint64_t const*>(stride), reinterpret_cast<uint32_t const*>(box),
                            reinterpret_cast<uint32_t const*>(element_stride), interleave, swizzle, fill);
  std::memcpy(static_cast<void*>(map), &encoded, sizeof(encoded));
  return CUDA_SUCCESS;
}
