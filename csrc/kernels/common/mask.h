// Which keys a query sees: causal and sliding-window masks as one interval of columns per row.
#pragma once
#include <cstdint>

#include "common/macros.h"

namespace sage {

// Row i of a sequence sees the keys [col_begin(i), col_end(i)); none where that is empty. Both ends never decrease with
// the row. Lengths are the true ones of this sequence; the diagonal is aligned to the bottom right.
struct Mask {
  int64_t seqlen_q, seqlen_k;
  bool causal;
  int64_t window_left, window_right;  // -1: open on that side

  SAGE_HD int64_t col_begin(int64_t row) const {
    int64_t const begin = window_left < 0 ? 0 : row + seqlen_k - seqlen_q - window_left;
    return begin > 0 ? begin : 0;
  }

  SAGE_HD int64_t col_end(int64_t row) const {
    if (!causal && window_right < 0) return seqlen_k;
    int64_t const right = causal ? 0 : window_right;
    int64_t const end = row + seqlen_k - seqlen_q + right + 1;
    return end < 0 ? 0 : end < seqlen_k ? end : seqlen_k;
  }
};

}  // namespace sage
