// A tile of an output that a block puts together in shared memory and then stores with 16 bytes a lane.
#pragma once
#include "arch/simt.h"
#include "common/macros.h"
#include "quantize/tiles.h"

namespace sage::quantize {

template <int kBytes>
class SharedTile {
 public:
  // The byte at `offset` of the tile; aligned to 16 bytes like it.
  SAGE_DEVICE char* at(int offset) { return bytes_ + chunk_place(offset / 16) * 16 + offset % 16; }

  // Stores the first kCount bytes to `out`, by kThreads threads; they have been written before a barrier.
  template <int kThreads, int kCount>
  SAGE_DEVICE void store(char* out, int first = 0) const {
    constexpr int kChunks = kCount / 16;
    SAGE_UNROLL for (int i = 0; i < kChunks; i += kThreads) {
      int const chunk = i + arch::thread_index();
      if (kChunks % kThreads != 0 && chunk >= kChunks) break;
      reinterpret_cast<Channels*>(out)[chunk] =
          reinterpret_cast<Channels const*>(bytes_)[chunk_place(first / 16 + chunk)];
    }
  }

 private:
  // Where a chunk of 16 bytes lies: the same channel of 8 lanes, whose chunks are 8 or 32 apart, falls in different
  // banks.
  SAGE_DEVICE static int chunk_place(int chunk) { return chunk ^ ((chunk / 8 ^ chunk / 32) % 8); }

  static_assert(kBytes % 128 == 0, "chunks change places within 8 of them");
  alignas(16) char bytes_[kBytes];
};

}  // namespace sage::quantize
