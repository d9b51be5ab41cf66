// A case of atoms.h in the emulator.
#pragma once
#include "golden/vectors.h"
#include "simt/machine.h"

namespace golden {

template <class Case>
void run_in_emulator(Vector& vector) {
  simt::launch(1, Case::kLanes, Case::kSharedBytes, [&vector](char* smem) {
    Case::run(&vector.in[threadIdx.x * Case::kIn], &vector.out[threadIdx.x * Case::kOut], smem);
  });
}

}  // namespace golden
