// ldmatrix, stmatrix, and checks on plain vector copies.
#pragma once
#include <cute/arch/copy_sm75.hpp>
#include <cute/arch/copy_sm90.hpp>

#include "simt/async_copy.h"
#include "simt/warp_matrix.h"

namespace simt {

template <int kMatrices, bool kTranspose>
struct CallLdmatrix {
  template <class... Registers>
  void operator()(cute::uint128_t const& row, Registers&... registers) const {
    static_assert(sizeof...(Registers) == kMatrices);
    uint32_t words[kMatrices];
    ldmatrix(kMatrices, kTranspose, &row, words);
    NoTrack no_track;  // written by another lane
    int i = 0;
    ((registers = words[i++]), ...);
  }
};

template <int kMatrices, bool kTranspose>
struct CallStmatrix {
  // The registers, then the row.
  template <class... Arguments>
  void operator()(Arguments&&... arguments) const {
    static_assert(sizeof...(Arguments) == kMatrices + 1);
    uint32_t words[kMatrices];
    int i = 0;
    auto const take = [&](auto& argument) {
      if constexpr (std::is_same_v<std::remove_cvref_t<decltype(argument)>, cute::uint128_t>) {
        stmatrix(kMatrices, kTranspose, &argument, words);
      } else {
        words[i++] = argument;
      }
    };
    (take(arguments), ...);
  }
};

// A copy by one thread in one instruction: both sides aligned to its size, and nothing read that is still on its way.
inline void check_vector_copy(void const* source, void const* destination, uint32_t bytes) {
  if (!t_self) return;  // not in a kernel
  for (void const* p : {source, destination}) {
    if (is_shared(p)) {
      uint32_t const offset = smem_offset(p);
      check_smem("vector copy", offset, bytes, bytes);
      if (bytes >= 16) check_landed("vector copy", offset, bytes);
    } else if (reinterpret_cast<uintptr_t>(p) % bytes != 0) {
      fail("vector copy of %u bytes: the address %p is misaligned", bytes, p);
    }
  }
}

}  // namespace simt

namespace cute::detail {

template <>
struct CallCOPY<SM75_U32x1_LDSM_N> : ::simt::CallLdmatrix<1, false> {};
template <>
struct CallCOPY<SM75_U32x2_LDSM_N> : ::simt::CallLdmatrix<2, false> {};
template <>
struct CallCOPY<SM75_U32x4_LDSM_N> : ::simt::CallLdmatrix<4, false> {};
template <>
struct CallCOPY<SM75_U16x2_LDSM_T> : ::simt::CallLdmatrix<1, true> {};
template <>
struct CallCOPY<SM75_U16x4_LDSM_T> : ::simt::CallLdmatrix<2, true> {};
template <>
struct CallCOPY<SM75_U16x8_LDSM_T> : ::simt::CallLdmatrix<4, true> {};
template <>
struct CallCOPY<SM90_U32x1_STSM_N> : ::simt::CallStmatrix<1, false> {};
template <>
struct CallCOPY<SM90_U32x2_STSM_N> : ::simt::CallStmatrix<2, false> {};
template <>
struct CallCOPY<SM90_U32x4_STSM_N> : ::simt::CallStmatrix<4, false> {};
template <>
struct CallCOPY<SM90_U16x2_STSM_T> : ::simt::CallStmatrix<1, true> {};
template <>
struct CallCOPY<SM90_U16x4_STSM_T> : ::simt::CallStmatrix<2, true> {};
template <>
struct CallCOPY<SM90_U16x8_STSM_T> : ::simt::CallStmatrix<4, true> {};

template <class S, class D>
struct CallCOPY<UniversalCopy<S, D>> {
  template <class Source, class Destination>
  constexpr void operator()(Source&& source, Destination&& destination) const {
    if constexpr (std::is_same_v<std::remove_cvref_t<Source>, S> &&
                  std::is_same_v<std::remove_cvref_t<Destination>, D>) {
      ::simt::check_vector_copy(&source, &destination, sizeof(S));
    }
    UniversalCopy<S, D>::copy(source, destination);
  }
};

}  // namespace cute::detail
