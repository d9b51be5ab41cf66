// The copy atoms of a warp against the layouts of their traits: ldmatrix, stmatrix, cp.async; bank conflicts; vector
// copies.
#include <cute/atom/copy_atom.hpp>
#include <cute/tensor.hpp>
#include <vector>

#include "self_test/check.h"

using namespace cute;

namespace {

// 32 rows of 16 bytes in an order of their own, so that addresses matter.
constexpr int kRowBytes = 16, kBytes = 32 * kRowBytes;
alignas(16) char elsewhere[kRowBytes];
constexpr int row_of(int lane) { return (lane * 5 + 3) % 32; }

template <class Layout>
int byte_of(Layout layout, int lane, int byte) {
  return static_cast<int>(layout(lane, byte * 8)) / 8;
}

// Where each byte of the instruction's matrices lies: of the lanes' rows, and of the lanes' registers.
template <class RowLayout, class RegisterLayout>
struct Expected {
  int matrices;
  std::vector<int> row_byte, register_byte;  // per byte of the matrices: lane * 16 + byte; lane * 4 matrices + byte
  explicit Expected(int n) : matrices(n), row_byte(n * 128, -1), register_byte(n * 128, -1) {
    for (int lane = 0; lane < 8 * n; ++lane) {
      for (int b = 0; b < kRowBytes; ++b) row_byte.at(byte_of(RowLayout{}, lane, b)) = lane * kRowBytes + b;
    }
    for (int lane = 0; lane < 32; ++lane) {
      for (int b = 0; b < 4 * n; ++b) register_byte.at(byte_of(RegisterLayout{}, lane, b)) = lane * 4 * n + b;
    }
  }
};

template <class Op>
void check_ldmatrix() {
  constexpr int n = std::extent_v<typename Op::DRegisters>;
  std::vector<unsigned char> registers(32 * 4 * n);
  std::vector<unsigned char> memory(kBytes);
  self_test::Generator random;
  for (auto& byte : memory) byte = static_cast<unsigned char>(random());
  auto const before = simt::stats();
  simt::launch(1, 32, kBytes, [&](char* smem) {
    int const lane = threadIdx.x;
    for (int b = 0; b < kRowBytes; ++b) smem[row_of(lane) * 16 + b] = static_cast<char>(memory[row_of(lane) * 16 + b]);
    __syncwarp();
    // Lanes beyond the matrices' rows may point anywhere.
    char* const row = lane < 8 * n ? smem + row_of(lane) * 16 : elsewhere;
    auto source = make_tensor(make_smem_ptr(reinterpret_cast<uint128_t*>(row)), Layout<_1>{});
    auto destination = make_tensor<uint32_t>(Int<n>{});
    copy_unpack(Copy_Traits<Op>{}, source, destination);
    std::memcpy(&registers[lane * 4 * n], raw_pointer_cast(destination.data()), 4 * n);
  });
  CHECK_EQUAL(simt::stats().ldsm_phases - before.ldsm_phases, uint64_t{n});
  using Traits = Copy_Traits<Op>;
  Expected<typename Traits::SrcLayout, typename Traits::DstLayout> const expected(n);
  int wrong = 0;
  for (int i = 0; i < n * 128; ++i) {
    int const at = expected.row_byte[i];
    wrong += registers[expected.register_byte[i]] != memory[row_of(at / 16) * 16 + at % 16];
  }
  CHECK_EQUAL(wrong, 0);
}

template <class Op>
void check_stmatrix() {
  constexpr int n = std::extent_v<typename Op::SRegisters>;
  std::vector<unsigned char> registers(32 * 4 * n), memory(kBytes);
  self_test::Generator random;
  for (auto& byte : registers) byte = static_cast<unsigned char>(random());
  auto const before = simt::stats();
  simt::launch(1, 32, kBytes, [&](char* smem) {
    int const lane = threadIdx.x;
    char* const row = lane < 8 * n ? smem + row_of(lane) * 16 : elsewhere;
    auto source = make_tensor<uint32_t>(Int<n>{});
    auto destination = make_tensor(make_smem_ptr(reinterpret_cast<uint128_t*>(row)), Layout<_1>{});
    std::memcpy(raw_pointer_cast(source.data()), &registers[lane * 4 * n], 4 * n);
    copy_unpack(Copy_Traits<Op>{}, source, destination);
    __syncwarp();
    for (int b = 0; b < kRowBytes; ++b) memory[lane * 16 + b] = static_cast<unsigned char>(smem[lane * 16 + b]);
  });
  CHECK_EQUAL(simt::stats().stsm_phases - before.stsm_phases, uint64_t{n});
  using Traits = Copy_Traits<Op>;
  Expected<typename Traits::DstLayout, typename Traits::SrcLayout> const expected(n);
  int wrong = 0;
  for (int i = 0; i < n * 128; ++i) {
    int const at = expected.row_byte[i];
    wrong += registers[expected.register_byte[i]] != memory[row_of(at / 16) * 16 + at % 16];
  }
  CHECK_EQUAL(wrong, 0);
}

// Extra wavefronts of one ldmatrix of four matrices whose rows are `pitch` bytes apart, swizzled or not.
uint64_t conflicts(int pitch, bool swizzled) {
  auto const before = simt::stats().ldsm_conflicts;
  simt::launch(1, 32, 32 * pitch, [&](char* smem) {
    int const row = threadIdx.x;
    char* const p = smem + row * pitch + (swizzled ? row % 8 * 16 : 0);
    auto source = make_tensor(make_smem_ptr(reinterpret_cast<uint128_t*>(p)), Layout<_1>{});
    auto destination = make_tensor<uint32_t>(Int<4>{});
    copy_unpack(Copy_Traits<SM75_U32x4_LDSM_N>{}, source, destination);
  });
  return simt::stats().ldsm_conflicts - before;
}

template <template <class, class> class Atom, class T>
void check_cp_async() {
  alignas(16) unsigned char source[sizeof(T)];
  for (size_t i = 0; i < sizeof(T); ++i) source[i] = static_cast<unsigned char>(i + 1);
  unsigned char copied[2][sizeof(T)];
  simt::launch(1, 1, 64, [&](char* smem) {
    for (int valid = 0; valid < 2; ++valid) {
      auto from = make_tensor(make_gmem_ptr(reinterpret_cast<T const*>(source)), Layout<_1>{});
      auto to = make_tensor(make_smem_ptr(reinterpret_cast<T*>(smem)), Layout<_1>{});
      Copy_Traits<Atom<T, T>> traits;
      if constexpr (requires { traits.pred; }) {
        copy_unpack(traits.with(valid != 0), from, to);
      } else {
        copy_unpack(traits, from, to);
      }
      cp_async_fence();
      cp_async_wait<0>();
      std::memcpy(copied[valid], smem, sizeof(T));
    }
  });
  bool const fills = requires { Copy_Traits<Atom<T, T>>{}.pred; };
  for (size_t i = 0; i < sizeof(T); ++i) {
    CHECK_EQUAL(copied[0][i], fills ? 0 : source[i]);
    CHECK_EQUAL(copied[1][i], source[i]);
  }
}

template <class T>
void copy_vector(char* from, char* to) {
  auto source = make_tensor(reinterpret_cast<T*>(from), Layout<_1>{});
  auto destination = make_tensor(reinterpret_cast<T*>(to), Layout<_1>{});
  copy(Copy_Atom<UniversalCopy<T>, T>{}, source, destination);
}

void check_misaligned() {
  CHECK_ERROR("ldmatrix: the shared address 8 is not a multiple of 16", simt::launch(1, 32, 1024, [](char* smem) {
                uint32_t word;
                detail::CallCOPY<SM75_U32x1_LDSM_N>{}(*reinterpret_cast<uint128_t*>(smem + 8), word);
              }));
  CHECK_ERROR("vector copy: the shared address 8 is not a multiple of 16", simt::launch(1, 1, 1024, [](char* smem) {
                alignas(16) char registers[16];
                copy_vector<uint128_t>(smem + 8, registers);
              }));
}

void check_misuse() {
  CHECK_ERROR("outside of the block's 96 bytes of shared memory: offset 96", simt::launch(1, 32, 96, [](char* smem) {
                uint32_t word;
                detail::CallCOPY<SM75_U32x1_LDSM_N>{}(*reinterpret_cast<uint128_t*>(smem + 16 * threadIdx.x), word);
              }));
  CHECK_ERROR("ldmatrix: 16 bytes at shared address 96 reach beyond the block's 100",
              simt::launch(1, 32, 100, [](char* smem) {
                uint32_t word;
                detail::CallCOPY<SM75_U32x1_LDSM_N>{}(*reinterpret_cast<uint128_t*>(smem + 96), word);
              }));
  CHECK_ERROR("divergent warp", simt::launch(1, 32, 1024, [](char* smem) {
                uint32_t word;
                auto& row = *reinterpret_cast<uint128_t*>(smem);
                if (threadIdx.x == 3)
                  detail::CallCOPY<SM75_U16x2_LDSM_T>{}(row, word);
                else
                  detail::CallCOPY<SM75_U32x1_LDSM_N>{}(row, word);
              }));
  CHECK_ERROR("vector copy: 16 bytes at shared address 96 reach beyond the block's 100",
              simt::launch(1, 1, 100, [](char* smem) {
                alignas(16) char registers[16] = {};
                copy_vector<uint128_t>(registers, smem + 96);
              }));
  CHECK_ERROR("outside of the block's 100 bytes of shared memory: offset 112", simt::launch(1, 1, 100, [](char* smem) {
                alignas(16) char registers[16] = {};
                copy_vector<uint128_t>(registers, smem + 112);
              }));
  CHECK_ERROR("vector copy: an asynchronous copy to shared address 0 was issued and not waited for",
              simt::launch(1, 1, 64, [](char* smem) {
                alignas(16) char registers[16] = {};
                simt::cp_async(smem, registers, 16, 16);
                copy_vector<uint128_t>(smem, registers);
              }));
  CHECK_ERROR("not emulated: Trying to use movmatrix", simt::launch(1, 32, 0, [](char*) {
                uint32_t source = 0, destination;
                SM75_U32x1_MOVM_T::copy(source, destination);
              }));
}

#if !SIMT_ASAN && !SIMT_TSAN
// In a build without sanitizers the compiler tells of all stores.
template <class T>
void store(int offset) {
  simt::launch(1, 2, 100, [offset](char* smem) {
    if (threadIdx.x == 1) *reinterpret_cast<T volatile*>(smem + offset) = 1;
    __syncthreads();
  });
}

void check_plain_stores() {
  CHECK(self_test::error_of([] { store<int>(96); }).empty());
  CHECK_ERROR("thread 1: store of 8 bytes at shared address 96, outside of the block's 100 bytes", store<int64_t>(96));
  CHECK_ERROR("store of 1 bytes at shared address 100, outside", store<char>(100));
  CHECK_ERROR("store of 1 bytes at shared address -1, outside", store<char>(-1));
  CHECK_ERROR("store of 4 bytes at shared address 6, which is not a multiple of that", store<int>(6));
  // A copy of bytes may be one unaligned store here and none of the GPU's.
  simt::launch(1, 1, 100, [](char* smem) { std::memcpy(smem + 5, elsewhere, 4); });
}
#endif

}  // namespace

int main() {
  check_ldmatrix<SM75_U32x1_LDSM_N>();
  check_ldmatrix<SM75_U32x2_LDSM_N>();
  check_ldmatrix<SM75_U32x4_LDSM_N>();
  check_ldmatrix<SM75_U16x2_LDSM_T>();
  check_ldmatrix<SM75_U16x4_LDSM_T>();
  check_ldmatrix<SM75_U16x8_LDSM_T>();
  check_stmatrix<SM90_U32x1_STSM_N>();
  check_stmatrix<SM90_U32x2_STSM_N>();
  check_stmatrix<SM90_U32x4_STSM_N>();
  check_stmatrix<SM90_U16x2_STSM_T>();
  check_stmatrix<SM90_U16x4_STSM_T>();
  check_stmatrix<SM90_U16x8_STSM_T>();
  CHECK_EQUAL(conflicts(16, false), uint64_t{0});
  CHECK_EQUAL(conflicts(144, false), uint64_t{0});  // a row more than 128 bytes
  CHECK_EQUAL(conflicts(128, false), uint64_t{4 * 7});
  CHECK_EQUAL(conflicts(64, false), uint64_t{4 * 3});
  CHECK_EQUAL(conflicts(256, true), uint64_t{0});
  check_cp_async<SM80_CP_ASYNC_CACHEALWAYS, uint32_t>();
  check_cp_async<SM80_CP_ASYNC_CACHEALWAYS, uint64_t>();
  check_cp_async<SM80_CP_ASYNC_CACHEGLOBAL, uint128_t>();
  check_cp_async<SM80_CP_ASYNC_CACHEALWAYS_ZFILL, uint64_t>();
  check_cp_async<SM80_CP_ASYNC_CACHEGLOBAL_ZFILL, uint128_t>();
  if (!SIMT_ASAN) check_misaligned();  // else UndefinedBehaviorSanitizer stops at the references
  check_misuse();
#if !SIMT_ASAN && !SIMT_TSAN
  check_plain_stores();
#endif
  return self_test::finish("warp_copy");
}
