// Block-scaled mma.sync (PTX ISA 9.7.14.5.14): each element counts times the scale of its block along K.
#pragma once
#include <cstdint>
#include <vector>

#include "simt/mma.h"

namespace simt {

struct ScaledMma {
  WarpMma mma;
  int container_bits;  // that an element takes in a register: 4 or 8
  Element scale;
  int vector;  // elements of a block along K
  // [lane][k] -> where in the matrix the scale counts that the lane's register holds for element k of its row or
  // column: k * M + m, k * N + n.
  std::vector<uint16_t> sfa_index, sfb_index;
};

struct ScaledMmaRegisters {  // of one lane
  MmaRegisters mma;
  void const *sfa, *sfb;  // K / vector scales, the first in the low byte
};

// slots[l] is lane l's ScaledMmaRegisters. Of the four lanes of a quad the first two supply scales of A, the first
// those of B (byte and thread selectors 0, as CUTLASS has them).
void scaled_mma(ScaledMma const& mma, void** slots);

}  // namespace simt
