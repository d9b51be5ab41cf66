// Warp-wide operations and block barriers.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "simt/machine.h"

namespace simt {

constexpr uint32_t kFullWarp = 0xffffffffu;

// The lanes of `mask` meet; returns the rendezvous to the one that arrives last, nullptr to the others once it has
// called warp_release. `tag` identifies the operation: lanes that meet in different ones are an error.
Rendezvous* warp_arrive(void const* tag, char const* name, uint32_t mask, void* arg);
void warp_release(Rendezvous& rendezvous);

// run(slots) once, on the last arriver; slots[l] is lane l's `arg` (for lanes of `mask`). It must not wait.
template <class Run>
void warp_collective(void const* tag, char const* name, uint32_t mask, void* arg, Run&& run) {
  NoTrack no_track;
  if (Rendezvous* rendezvous = warp_arrive(tag, name, mask, arg)) {
    run(static_cast<void**>(rendezvous->slot));
    warp_release(*rendezvous);
  }
}

void syncwarp(uint32_t mask = kFullWarp);
uint32_t ballot(uint32_t mask, bool predicate, char const* name);
// The bits that source_lane brought. Reading a lane outside of `mask` is an error.
uint64_t shuffle_bits(uint32_t mask, uint64_t bits, int source_lane, char const* name);

template <class T>
T shuffle(uint32_t mask, T value, int source_lane, char const* name) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "shuffles move up to 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = shuffle_bits(mask, bits, source_lane, name);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// bar.sync / bar.arrive of barrier `id` for `num_threads` threads, a multiple of 32.
void bar_sync(uint32_t id, uint32_t num_threads);
void bar_arrive(uint32_t id, uint32_t num_threads);
void syncthreads();

}  // namespace simt
