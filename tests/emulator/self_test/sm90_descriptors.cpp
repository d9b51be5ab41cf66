// wgmma descriptors: for every shared memory layout of CuTe's GMMA, the address that the descriptor's bits give for an
// element is the one that the layout gives.
#include <cute/tensor.hpp>

#include "self_test/check.h"

using namespace cute;

namespace {

template <class T, GMMA::Major kMajor, class Atom>
void check_layout(char const* name) {
  constexpr int kM = 256, kK = 256 / sizeof(T), kInstructionM = 128, kInstructionK = 32 / sizeof(T);
  using Order = std::conditional_t<kMajor == GMMA::Major::MN, Step<_2, _1>, Step<_1, _2>>;
  using SmemLayout = decltype(tile_to_shape(Atom{}, Shape<Int<kM>, Int<kK>>{}, Order{}));
  constexpr int kOffset = 2048;  // not the beginning of shared memory
  int mismatches = 0, elements = 0;
  simt::launch(1, 1, kOffset + cosize_v<SmemLayout> * sizeof(T), [&](char* smem) {
    auto const tensor = make_tensor(make_smem_ptr(reinterpret_cast<T*>(smem + kOffset)), SmemLayout{});
    auto const tiles = zipped_divide(tensor, Shape<Int<kInstructionM>, Int<kInstructionK>>{});  // ((M, K), (m, k))
    for (int m = 0; m < kM / kInstructionM; ++m) {
      for (int k = 0; k < kK / kInstructionK; ++k) {
        // As make_fragment_A: the descriptor of the first tile, advanced.
        auto const fragment = MakeTensor<GMMA::smem_desc<kMajor>>{}(tiles);
        uint64_t const descriptor = fragment(0, make_coord(m, k));
        for (int i = 0; i < kInstructionM; ++i) {
          for (int j = 0; j < kInstructionK; ++j) {
            auto const major = kMajor == GMMA::Major::K ? simt::Major::kK : simt::Major::kMN;
            uint32_t const address = simt::wgmma_address(descriptor, major, sizeof(T), i, j);
            mismatches += address != simt::smem_offset(&tiles(make_coord(i, j), make_coord(m, k)));
            ++elements;
          }
        }
      }
    }
  });
  self_test::report(mismatches == 0 && elements == kM * kK, __FILE__, __LINE__,
                    std::string(name) + ": " + std::to_string(mismatches) + " of " + std::to_string(elements) +
                        " elements elsewhere");
}

template <class T>
void check_all() {
  check_layout<T, GMMA::Major::K, GMMA::Layout_K_INTER_Atom<T>>("K-major, no swizzle");
  check_layout<T, GMMA::Major::K, GMMA::Layout_K_SW32_Atom<T>>("K-major, 32 bytes");
  check_layout<T, GMMA::Major::K, GMMA::Layout_K_SW64_Atom<T>>("K-major, 64 bytes");
  check_layout<T, GMMA::Major::K, GMMA::Layout_K_SW128_Atom<T>>("K-major, 128 bytes");
  check_layout<T, GMMA::Major::MN, GMMA::Layout_MN_INTER_Atom<T>>("MN-major, no swizzle");
  check_layout<T, GMMA::Major::MN, GMMA::Layout_MN_SW32_Atom<T>>("MN-major, 32 bytes");
  check_layout<T, GMMA::Major::MN, GMMA::Layout_MN_SW64_Atom<T>>("MN-major, 64 bytes");
  check_layout<T, GMMA::Major::MN, GMMA::Layout_MN_SW128_Atom<T>>("MN-major, 128 bytes");
}

}  // namespace

int main() {
  check_all<half_t>();
  check_all<int8_t>();
  return self_test::finish("wgmma descriptors");
}
