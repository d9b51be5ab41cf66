// Rows of K, smoothed and rotated.
#pragma once
#include <cstdint>

#include "arch/simt.h"
#include "quantize/params.h"
#include "quantize/tiles.h"

namespace sage::quantize {

template <int kHeadDim>
struct KRows {
  using Lanes = quantize::Lanes<kHeadDim>;

  struct SharedStorage {
    alignas(16) float mean[kHeadDim], signs[kHeadDim];
  };

  // y[j] = this lane's channels of key(j) as they are to be rounded, zeros where the key does not exist. Has a barrier.
  template <class Key>
  SAGE_DEVICE static void load(float (&y)[4][8], QuantizeParams const& p, SharedStorage& shared, Place const& place,
                               HeadRows const& rows, Key const& key) {
    int const channel = Lanes::channel();
    Channels x[4];
    rows.load(x, channel, key);
    if (p.hadamard) Lanes::load_signs(shared.signs);
    load_k_mean(p, shared.mean, place.batch, place.head);

    SAGE_UNROLL for (int j = 0; j < 4; ++j) {
      to_float(y[j], x[j], p.dtype);
      SAGE_UNROLL for (int c = 0; c < 8; ++c)
        y[j][c] = rows.has(key(j)) ? y[j][c] - shared.mean[channel + c] : 0.f;
    }
    if (p.hadamard) {
      SAGE_UNROLL for (int j = 0; j < 4; ++j)
        Lanes::rotate(y[j], shared.signs);
    }
  }
};

}  // namespace sage::quantize
