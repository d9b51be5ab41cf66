// Where the sequence of one batch entry lies, for padded and for packed (varlen) tensors.
#pragma once
#include <cstdint>

#include "common/macros.h"

namespace sage {

struct Sequence {
  int64_t row_q, row_k;        // first row in the tensors, 0 unless packed
  int64_t seqlen_q, seqlen_k;  // true lengths
};

struct Sequences {
  int64_t seqlen_q, seqlen_k;                  // of every sequence, unless packed
  int32_t const *cu_seqlens_q, *cu_seqlens_k;  // packed if not null
  int32_t const* seqused_k;                    // optional

  SAGE_HD Sequence operator[](int32_t batch) const {
    Sequence s{0, 0, seqlen_q, seqlen_k};
    if (cu_seqlens_q) {
      s.row_q = cu_seqlens_q[batch];
      s.row_k = cu_seqlens_k[batch];
      s.seqlen_q = cu_seqlens_q[batch + 1] - s.row_q;
      s.seqlen_k = cu_seqlens_k[batch + 1] - s.row_k;
    }
    if (seqused_k) s.seqlen_k = seqused_k[batch];
    return s;
  }
};

}  // namespace sage
