// The scales and means of the channels of V.
#pragma once
#include <cmath>
#include <cstdint>

#include "arch/convert.h"
#include "arch/simt.h"
#include "quantize/params.h"
#include "quantize/tiles.h"

namespace sage::quantize {

template <int kHeadDim>
struct VScale {
  struct SharedStorage {
    alignas(16) float mean[kHeadDim], inverse[kHeadDim];  // of the scales
  };

  // The mean and the inverse scales of V; the block of the sequence's first tile stores both.
  // scale_of(the largest magnitude) is a channel's Scale. Ends with a barrier.
  template <class ScaleOf>
  SAGE_DEVICE static void load_scale(QuantizeParams const& p, SharedStorage& shared, Place const& place,
                                     int64_t seqlen_k, ScaleOf const& scale_of) {
    int const channel = arch::thread_index();
    if (channel < kHeadDim) {
      auto const combine = [&](float x, float const* stats, auto const& op) {
        for_each_chunk<kHeadDim>(p, stats, place.batch, place.head, [&](float y) { x = op(x, y); });
        return x;
      };
      auto const larger = [](float x, float y) { return arch::max_nan(x, y); };
      float amax = combine(p.v_mean ? -INFINITY : 0.f, p.v_amax, larger), mean = 0.f;
      if (p.v_mean) {
        float const sum = combine(0.f, p.v_sum, [](float x, float y) { return x + y; });
        float const low = -combine(-INFINITY, p.v_low, [](float x, float y) { return arch::max_nan(x, -y); });
        mean = seqlen_k > 0 ? sum / static_cast<float>(seqlen_k) : 0.f;
        amax = arch::max_nan(amax - mean, mean - low);
        shared.mean[channel] = mean;
      }
      Scale const scale = scale_of(amax);
      shared.inverse[channel] = scale.inverse;
      if (place.first_row == 0) {
        int64_t const i = (int64_t{place.batch} * p.num_heads_kv + place.head) * kHeadDim + channel;
        p.v_scale[i] = scale.scale;
        if (p.v_mean) p.v_mean[i] = mean;
      }
    }
    arch::sync_block();  // the inverse scales of all channels are visible
  }
};

}  // namespace sage::quantize
