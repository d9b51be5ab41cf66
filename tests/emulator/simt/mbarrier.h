// mbarrier objects in shared memory (PTX ISA 9.7.13.15): a phase ends when no arrival and no transaction byte is
// missing. The 8 bytes themselves stay unused; `p` only says which barrier is meant.
#pragma once
#include <cstdint>

#include "simt/machine.h"

namespace simt {

void mbar_init(void const* p, uint32_t count);
void mbar_invalidate(void const* p);
void mbar_arrive(void const* p, uint32_t count = 1);
void mbar_expect_tx(void const* p, uint32_t bytes);
void mbar_complete_tx(void const* p, uint32_t bytes);
// Whether the phase of this parity has ended (the phase before the first counts as ended and has parity 1).
bool mbar_test(void const* p, uint32_t parity);
// The same for a loop that tries again: if it has not, lets others run before the answer.
bool mbar_poll(void const* p, uint32_t parity);
void mbar_wait(void const* p, uint32_t parity);
// The barrier at p. Throws if it was never initialised.
Mbarrier& mbar_get(void const* p, char const* what);

}  // namespace simt
