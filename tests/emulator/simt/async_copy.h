// cp.async: copies from global to shared memory that land when their group is waited for, at once, or at some point in
// between (AsyncTiming). Until then the destination is full of 0xFF, and any access to it is an error where a hook or
// AddressSanitizer sees it.
#pragma once
#include <cstdint>

#include "simt/machine.h"

namespace simt {

// Copies src_bytes (0: src is not read) and fills up to `bytes` (4, 8 or 16) with zeros.
void cp_async(void* dst, void const* src, uint32_t bytes, uint32_t src_bytes);
void cp_async_commit();
void cp_async_wait_group(int pending);  // until at most `pending` committed groups of this thread are
void cp_async_wait_all();

// For every kind of asynchronous write to shared memory: from its issue to its landing.
void begin_flight(uint32_t offset, uint32_t bytes);  // fills with 0xFF
void end_flight(uint32_t offset, uint32_t bytes);
// Throws if any of these bytes is still on its way.
void check_landed(char const* what, uint32_t offset, uint32_t bytes);

// For the scheduler: lands one pending copy of some thread. For a thread's exit: throws if there are any.
void cp_async_land_one();
void cp_async_check_exit();

}  // namespace simt
