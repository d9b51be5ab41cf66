// TMA and bulk copies against plain loops, what the driver refuses to encode, and the protocol around them.
#include <cutlass/arch/barrier.h>
#include <cute/tensor.hpp>

#include <array>
#include <cstring>
#include <numeric>
#include <vector>

#include "self_test/check.h"

using namespace cute;

namespace {

using Barrier = cutlass::arch::ClusterTransactionBarrier;
constexpr int kMaxRank = 5;
using Ints = std::array<int, kMaxRank>;

struct Case {
  int rank;
  Ints dim, box, coordinates;
  CUtensorMapSwizzle swizzle;
};

int product(Ints const& x, int rank) { return std::accumulate(x.begin(), x.begin() + rank, 1, std::multiplies<>()); }

// A tensor of 16-bit elements, dimension 0 contiguous, each further stride padded to 16 bytes and one element of 16.
struct Tensor16 {
  explicit Tensor16(Case const& c) : rank(c.rank), dim(c.dim) {
    uint64_t pitch = (dim[0] * 2 + 31) / 16 * 16;
    for (int i = 1; i < rank; ++i) {
      stride[i - 1] = pitch;
      pitch *= dim[i];
    }
    bytes.resize(pitch + 16);
    for (size_t i = 0; i < pitch / 2; ++i) at(i) = static_cast<uint16_t>(i * 7 + 1);
  }
  char* base() { return bytes.data() + (16 - reinterpret_cast<uintptr_t>(bytes.data()) % 16) % 16; }
  uint16_t& at(size_t i) { return reinterpret_cast<uint16_t*>(base())[i]; }
  // The element at x; nullptr outside.
  uint16_t* find(Ints const& x) {
    size_t offset = x[0] * 2;
    for (int i = 0; i < rank; ++i) {
      if (x[i] < 0 || x[i] >= dim[i]) return nullptr;
      if (i > 0) offset += x[i] * stride[i - 1];
    }
    return reinterpret_cast<uint16_t*>(base() + offset);
  }
  int rank;
  Ints dim;
  uint64_t stride[kMaxRank] = {};
  std::vector<char> bytes;
};

CUtensorMap encode(Case const& c, Tensor16& tensor, CUtensorMapDataType type = CU_TENSOR_MAP_DATA_TYPE_UINT16) {
  cuuint64_t dim[kMaxRank], stride[kMaxRank];
  cuuint32_t box[kMaxRank], element_stride[kMaxRank] = {1, 1, 1, 1, 1};
  for (int i = 0; i < c.rank; ++i) {
    dim[i] = c.dim[i];
    box[i] = c.box[i];
    stride[i] = tensor.stride[i];
  }
  CUtensorMap map;
  cuTensorMapEncodeTiled(&map, type, c.rank, tensor.base(), dim, stride, box, element_stride,
                         CU_TENSOR_MAP_INTERLEAVE_NONE, c.swizzle, CU_TENSOR_MAP_L2_PROMOTION_NONE,
                         CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return map;
}

template <class Op, class... Arguments>
void with_coordinates(Case const& c, Arguments... arguments) {
  Ints const& x = c.coordinates;
  switch (c.rank) {
    case 1: return Op::copy(arguments..., x[0]);
    case 2: return Op::copy(arguments..., x[0], x[1]);
    case 3: return Op::copy(arguments..., x[0], x[1], x[2]);
    case 4: return Op::copy(arguments..., x[0], x[1], x[2], x[3]);
    case 5: return Op::copy(arguments..., x[0], x[1], x[2], x[3], x[4]);
  }
}

uint32_t swizzle(CUtensorMapSwizzle mode, uint32_t offset) {
  switch (mode) {
    case CU_TENSOR_MAP_SWIZZLE_32B: return Swizzle<1, 4, 3>{}(offset);
    case CU_TENSOR_MAP_SWIZZLE_64B: return Swizzle<2, 4, 3>{}(offset);
    case CU_TENSOR_MAP_SWIZZLE_128B: return Swizzle<3, 4, 3>{}(offset);
    default: return offset;
  }
}

// f(shared offset of the element from the box's, its coordinates in the tensor)
template <class F>
void for_each_element(Case const& c, F&& f) {
  for (int i = 0; i < product(c.box, c.rank); ++i) {
    Ints x{};
    for (int d = 0, rest = i; d < c.rank; rest /= c.box[d], ++d) x[d] = c.coordinates[d] + rest % c.box[d];
    f(swizzle(c.swizzle, static_cast<uint32_t>(i) * 2), x);
  }
}

constexpr int kTile = 1024;  // where the box begins
constexpr int kSharedBytes = 64 * 1024;

void check_load(Case const& c) {
  Tensor16 tensor(c);
  CUtensorMap const map = encode(c, tensor);
  uint32_t const bytes = product(c.box, c.rank) * 2;
  int mismatches = 0;
  simt::launch(1, 64, kSharedBytes, [&](char* smem) {
    auto* const barrier = reinterpret_cast<uint64_t*>(smem);
    if (threadIdx.x == 0) {
      initialize_barrier(*barrier, 1);
      cutlass::arch::fence_barrier_init();
      Barrier::arrive_and_expect_tx(barrier, bytes);
      with_coordinates<SM90_TMA_LOAD>(c, &map, barrier, uint64_t{0}, static_cast<void*>(smem + kTile));
    }
    __syncthreads();
    Barrier::wait(barrier, 0);
    if (threadIdx.x != 1) return;
    for_each_element(c, [&](uint32_t offset, Ints const& x) {
      uint16_t const* const expected = tensor.find(x);
      uint16_t got;
      std::memcpy(&got, smem + kTile + offset, 2);
      mismatches += got != (expected ? *expected : 0);
    });
    mismatches += static_cast<uint8_t>(smem[kTile - 1]) != 0xFF || static_cast<uint8_t>(smem[kTile + bytes]) != 0xFF;
  });
  CHECK_EQUAL(mismatches, 0);
}

enum class StoreFault { kNone, kNoFence, kNoArrive, kNoWait, kOverwrite };

// What the kernel stores: the value of an element is its offset in the box.
template <class Op>
void run_store(Case const& c, CUtensorMap const& map, StoreFault fault = StoreFault::kNone) {
  simt::launch(1, 64, kSharedBytes, [&](char* smem) {
    for_each_element(c, [&](uint32_t offset, Ints const&) {
      if (offset / 2 % 64 == threadIdx.x) {
        *reinterpret_cast<uint16_t*>(smem + kTile + offset) = static_cast<uint16_t>(offset);
      }
    });
    if (fault != StoreFault::kNoFence) tma_store_fence();
    __syncthreads();
    if (threadIdx.x == 0) {
      with_coordinates<Op>(c, &map, static_cast<void const*>(smem + kTile));
      if (fault != StoreFault::kNoArrive) tma_store_arrive();
      if (fault == StoreFault::kOverwrite) smem[kTile + 20] = 0;
      if (fault != StoreFault::kNoWait) tma_store_wait<0>();
    }
  });
}

void check_store(Case const& c) {
  for (bool const add : {false, true}) {
    Tensor16 tensor(c), expected(c);
    CUtensorMap const map = encode(c, tensor, add ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_UINT16);
    add ? run_store<SM90_TMA_REDUCE_ADD>(c, map) : run_store<SM90_TMA_STORE>(c, map);
    for_each_element(c, [&](uint32_t offset, Ints const& x) {
      uint16_t* const element = expected.find(x);
      if (!element) return;
      auto const stored = static_cast<uint16_t>(offset);
      *element = add ? (half_t::bitcast(*element) + half_t::bitcast(stored)).raw() : stored;
    });
    CHECK(std::memcmp(tensor.base(), expected.base(), tensor.bytes.size() - 16) == 0);
  }
}

Case const kCases[] = {
    {1, {100}, {64}, {0}, CU_TENSOR_MAP_SWIZZLE_NONE},
    {1, {100}, {64}, {60}, CU_TENSOR_MAP_SWIZZLE_NONE},
    {2, {100, 50}, {64, 32}, {0, 0}, CU_TENSOR_MAP_SWIZZLE_128B},
    {2, {100, 50}, {64, 32}, {-3, 30}, CU_TENSOR_MAP_SWIZZLE_128B},
    {2, {70, 50}, {32, 16}, {50, -5}, CU_TENSOR_MAP_SWIZZLE_64B},
    {2, {70, 50}, {16, 16}, {60, 49}, CU_TENSOR_MAP_SWIZZLE_32B},
    {3, {64, 20, 7}, {64, 9, 4}, {0, 15, 5}, CU_TENSOR_MAP_SWIZZLE_NONE},
    {4, {64, 20, 7, 3}, {64, 8, 4, 2}, {0, 15, -1, 2}, CU_TENSOR_MAP_SWIZZLE_128B},
    {5, {24, 5, 7, 3, 4}, {16, 4, 3, 2, 2}, {9, 3, -1, 2, 3}, CU_TENSOR_MAP_SWIZZLE_32B},
    {2, {64, 10}, {64, 8}, {1000, 3}, CU_TENSOR_MAP_SWIZZLE_128B},
};

void check_encode() {
  auto const encode_with = [](auto change) {
    Case c = kCases[2];
    Tensor16 tensor(c);
    change(c, tensor);
    encode(c, tensor);
  };
  CHECK_ERROR("tensorRank must be 1 to 5, got 0", encode_with([](Case& c, Tensor16&) { c.rank = 0; }));
  CHECK_ERROR("boxDim must be 1 to 256, got 257", encode_with([](Case& c, Tensor16&) { c.box[1] = 257; }));
  CHECK_ERROR("globalStrides must be a multiple of 16, got 200",
              encode_with([](Case&, Tensor16& t) { t.stride[0] = 200; }));
  CHECK_ERROR("globalAddress must be a multiple of 16", {
    Case const c = kCases[0];
    Tensor16 tensor(c);
    cuuint64_t const dim = 64;
    cuuint32_t const box = 64, one = 1;
    CUtensorMap map;
    cuTensorMapEncodeTiled(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 1, tensor.base() + 2, &dim, nullptr, &box, &one,
                           CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_NONE,
                           CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  });
  CHECK_ERROR("boxDim[0] must have the 64 bytes of the swizzle, got 128",
              encode_with([](Case& c, Tensor16&) { c.swizzle = CU_TENSOR_MAP_SWIZZLE_64B; }));
  CHECK_ERROR("globalDim must be 1 to", encode_with([](Case& c, Tensor16&) { c.dim[1] = 0; }));
}

enum class LoadFault {
  kNone,
  kMisaligned,
  kOutside,
  kNoBarrier,
  kNoBarrierFence,
  kNotAMap,
  kFewerBytes,
  kMoreBytes,
  kOverStores,  // onto what a thread has stored, without a fence
  kNoWait,      // by anybody
};

void run_load(LoadFault fault) {
  Case const c = kCases[2];
  Tensor16 tensor(c);
  CUtensorMap map = encode(c, tensor);
  if (fault == LoadFault::kNotAMap) map = {};
  int const bytes = product(c.box, c.rank) * 2;
  simt::launch(1, 64, kSharedBytes, [&](char* smem) {
    auto* const barrier = reinterpret_cast<uint64_t*>(smem);
    if (threadIdx.x == 0) {
      if (fault != LoadFault::kNoBarrier) initialize_barrier(*barrier, 1);
      if (fault != LoadFault::kNoBarrierFence) cutlass::arch::fence_barrier_init();
      if (fault == LoadFault::kOverStores) smem[kTile] = 0;
      int const extra = fault == LoadFault::kFewerBytes ? 16 : fault == LoadFault::kMoreBytes ? -16 : 0;
      if (fault != LoadFault::kNoBarrier) Barrier::arrive_and_expect_tx(barrier, bytes + extra);
      int const offset = fault == LoadFault::kMisaligned ? 16
                         : fault == LoadFault::kOutside  ? kSharedBytes - 2048
                                                         : kTile;
      with_coordinates<SM90_TMA_LOAD>(c, &map, barrier, uint64_t{0}, static_cast<void*>(smem + offset));
    }
    __syncthreads();
    if (fault != LoadFault::kNoWait) Barrier::wait(barrier, 0);
  });
}

enum class Writer { kStmatrix, kCpAsync };

// A bulk store of 128 bytes that hooks have written to shared memory: also a build with a sanitizer sees these.
void store_row(Writer writer, bool fence) {
  alignas(16) char from[128], to[128];
  for (int i = 0; i < 128; ++i) from[i] = static_cast<char>(i);
  simt::launch(1, 32, kSharedBytes, [&](char* smem) {
    auto* const rows = reinterpret_cast<uint128_t*>(smem + kTile);
    int const lane = threadIdx.x;
    if (writer == Writer::kStmatrix) {
      uint32_t word;
      std::memcpy(&word, from + 4 * lane, 4);
      detail::CallCOPY<SM90_U32x1_STSM_N>{}(word, rows[lane % 8]);
    } else if (lane < 8) {
      SM80_CP_ASYNC_CACHEGLOBAL<uint128_t>::copy(reinterpret_cast<uint128_t const*>(from)[lane], rows[lane]);
      cp_async_fence();
      cp_async_wait<0>();
    }
    if (fence) tma_store_fence();
    __syncwarp();
    if (lane == 0) {
      SM90_BULK_COPY_S2G::copy(rows, to, 128);
      tma_store_arrive();
      tma_store_wait<0>();
    }
  });
  CHECK(std::memcmp(from, to, 128) == 0);
}

void check_faults() {
  CHECK(self_test::error_of([] { run_load(LoadFault::kNone); }).empty());
  CHECK_ERROR("TMA load: the shared address 16 is not a multiple of 128", run_load(LoadFault::kMisaligned));
  CHECK_ERROR("TMA load: 4096 bytes at shared address", run_load(LoadFault::kOutside));
  CHECK_ERROR("mbarrier at shared address 0 is not initialised", run_load(LoadFault::kNoBarrier));
  CHECK_ERROR("thread 0 initialised without a fence", run_load(LoadFault::kNoBarrierFence));
  CHECK_ERROR("TMA load: there is no tensor map at", run_load(LoadFault::kNotAMap));
  CHECK_ERROR("16 bytes missing", run_load(LoadFault::kFewerBytes));
  CHECK_ERROR("-16 bytes missing", run_load(LoadFault::kMoreBytes));
  CHECK_ERROR("the block exits without waiting for it", run_load(LoadFault::kNoWait));

  Case const c = kCases[2];
  Tensor16 tensor(c);
  CUtensorMap const map = encode(c, tensor);
  CHECK_ERROR("thread exits with a TMA store in flight", run_store<SM90_TMA_STORE>(c, map, StoreFault::kNoArrive));
  CHECK_ERROR("thread exits with a TMA store in flight", run_store<SM90_TMA_STORE>(c, map, StoreFault::kNoWait));
  for (bool const fence : {true, false}) {
    for (Writer const writer : {Writer::kStmatrix, Writer::kCpAsync}) {
      std::string const error = self_test::error_of([&] { store_row(writer, fence); });
      CHECK(fence ? error.empty() : error.find("the copy engine reads shared address") != std::string::npos);
    }
  }
#if !SIMT_ASAN && !SIMT_TSAN  // plain stores are seen in a build without sanitizers
  CHECK_ERROR("the copy engine overwrites shared address 1024, which thread 0 stored",
              run_load(LoadFault::kOverStores));
  CHECK_ERROR("the copy engine reads shared address", run_store<SM90_TMA_STORE>(c, map, StoreFault::kNoFence));
  CHECK_ERROR("before tma_store_wait", run_store<SM90_TMA_STORE>(c, map, StoreFault::kOverwrite));
#endif
}

// Three groups of bulk copies, of which the first must be over when at most two are left.
void check_bulk() {
  constexpr int kBytes = 256, kGroups = 3;
  std::vector<char> from(kBytes * kGroups + 16), to(kBytes * kGroups + 16);
  auto const aligned = [](std::vector<char>& v) {
    return v.data() + (16 - reinterpret_cast<uintptr_t>(v.data()) % 16) % 16;
  };
  for (int i = 0; i < kBytes * kGroups; ++i) aligned(from)[i] = static_cast<char>(i * 3);
  bool first_is_over = false;
  simt::launch(1, 32, 2048, [&](char* smem) {
    auto* const barrier = reinterpret_cast<uint64_t*>(smem);
    if (threadIdx.x != 0) return;
    initialize_barrier(*barrier, 1);
    cutlass::arch::fence_barrier_init();
    Barrier::arrive_and_expect_tx(barrier, kBytes * kGroups);
    for (int i = 0; i < kGroups; ++i) {
      SM90_BULK_COPY_G2S::copy(aligned(from) + i * kBytes, barrier, smem + 1024 + i * kBytes, kBytes);
    }
    Barrier::wait(barrier, 0);
    for (int i = 0; i < kGroups; ++i) {
      SM90_BULK_COPY_S2G::copy(smem + 1024 + i * kBytes, aligned(to) + i * kBytes, kBytes);
      tma_store_arrive();
    }
    tma_store_wait<kGroups - 1>();
    first_is_over = std::memcmp(aligned(from), aligned(to), kBytes) == 0;
    tma_store_wait<0>();
  });
  CHECK(first_is_over);
  CHECK(std::memcmp(aligned(from), aligned(to), kBytes * kGroups) == 0);
}

}  // namespace

int main() {
  self_test::for_each_configuration([] {
    for (Case const& c : kCases) {
      check_load(c);
      check_store(c);
    }
    check_bulk();
  });
  check_encode();
  check_faults();
  return self_test::finish("TMA");
}
