// An attention kernel whose fold slots the tests choose and look at (attention/params.h).
#pragma once
#include "arch/launch.h"
#include "attention/params.h"

namespace kernel_test {

// A kernel that launches `kernel`, which must outlive it. One per program.
sage::arch::CompiledKernel<sage::AttnParams> const& watched(sage::arch::CompiledKernel<sage::AttnParams> const& kernel);

// Of the following launches of the watched kernel: how many slots it may use at most; 0: all that there are.
void set_fold_slots(int32_t slots);

struct Watch {
  int32_t fold_slots;  // of the last launch: those that there were
  bool all_given_back;
};
Watch last_launch();

}  // namespace kernel_test
