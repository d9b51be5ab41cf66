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
  int vector;    // elements of a block along K
  int thread_b;  // the lane of each quad that supplies the scales of B
  // [lane][block] -> which scale the lane's register holds for the block of its row or column: block * M + m, block * N
  // + n.
  std::vector<uint16_t> sfa_index, sfb_index;
};

struct ScaledMmaRegisters {  // of one lane
  MmaRegisters mma;
  void const *sfa, *sfb;  // K / vector scales, the first in the low byte
};

// Such a table, from the layout [lane][k] of the scale that counts for element k: k * rows + row. Throws where the
// scale is not that of the element's block.
std::vector<uint16_t> scale_table(std::vector<uint16_t> const& element_table, int rows, int K, int vector);

// slots[l] is lane l's ScaledMmaRegisters. Of the four lanes of a quad the first two supply scales of A (thread
// selector 0) and one those of B; byte selectors are 0.
void scaled_mma(ScaledMma const& mma, void** slots);

}  // namespace simt
