// What the asynchronous proxy of sm90 (TMA, wgmma) sees of shared memory.
//
// Stores of threads go through the generic proxy. TMA and wgmma see them only after the storing thread has executed
// fence.proxy.async. Per 4 bytes of shared memory the emulator remembers who stored last, and whether that thread has
// executed a fence since. Stores are seen where a hook makes them (stmatrix, cp.async) and, in builds without a
// sanitizer, where the compiler finds any: kernels are compiled with -fsanitize=kernel-address, with calls before
// stores and nothing else, and the functions that it calls are ours.
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "simt/machine.h"

namespace simt {

// `writer` stores these bytes of shared memory through the generic proxy.
void note_generic_write(Thread const& writer, uint32_t offset, uint32_t bytes);
// Plain code is about to store to p, in or near shared memory. An `alignment` of 1 is no demand.
void note_shared_store(void const* p, size_t bytes, size_t alignment);
// The running thread initialised the mbarrier at p: the fence that the asynchronous proxy needs here is either one.
void note_barrier_init(void const* p);
void fence_proxy_async();   // fence.proxy.async: of all that the running thread has stored
void fence_barrier_init();  // fence.mbarrier_init: of the mbarriers that it has initialised

// Throws if the asynchronous proxy cannot see what is in these bytes. `what` begins the message: "TMA store reads".
void check_visible(char const* what, uint32_t offset, uint32_t bytes);
// The asynchronous proxy writes these bytes. Throws if a store could still overtake it.
void note_async_write(char const* what, uint32_t offset, uint32_t bytes);

// Of a block: what the facilities of sm90 remember.
struct Sm90Block final : Facility {
  explicit Sm90Block(Cta& cta);
  void check_at_exit() override;

  Cta& cta;
  // Per 4 bytes, of the last generic store: index of the thread + 1 (11 bits, 0: none), kind (1 bit), fences of that
  // kind that the thread had executed (20 bits).
  std::vector<uint32_t> writer;
  std::vector<uint32_t> fences[2];  // per thread: of data, of mbarrier initialisations

  struct Setmaxnreg {
    int registers;
    bool increase;
  };
  std::vector<std::vector<Setmaxnreg>> setmaxnreg;  // per warp, in order

  struct {
    unsigned arrived = 0, generation = 0;
    std::vector<unsigned> thread_generation;  // per thread: of the phase that it arrived in, + 1; 0: has not
    std::vector<Thread*> waiting;
    char hb[2];
  } cluster_barrier;
};

struct Wgmma;

// Of a thread: what it has started and not yet waited for.
struct Sm90Thread final : Facility {
  void check_at_exit() override;

  struct WgmmaIssue {
    Wgmma const* wgmma;
    uint64_t a_descriptor, b_descriptor;
    uint32_t const* a;     // registers; nullptr: A is in shared memory
    uint32_t a_issued[4];  // what they held
    uint32_t* accumulators;
    uint64_t accumulators_issued;  // a hash of what they held; 0: of no interest, an earlier one is in flight
    bool accumulate;
  };
  std::deque<std::vector<WgmmaIssue>> wgmma_groups{1};  // the last one is open
  bool wgmma_fenced = false;

  std::deque<int> bulk_groups = {0};  // unfinished stores of each group; the last one is open
  uint64_t bulk_first_group = 0;      // the number of the first
  int bulk_waiting_for = -1;          // blocked until at most so many groups are unfinished; -1: is not
};

// The state of the running thread's block, and its own; made when first needed.
Sm90Block& sm90_block();
Sm90Thread& sm90_thread();

}  // namespace simt
