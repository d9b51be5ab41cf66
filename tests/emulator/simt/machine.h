// One block (CTA) of CUDA threads on one OS thread: every CUDA thread is a fiber, a scheduler picks who runs next.
//
// A thread runs until it has to wait. There is no lock-step: the lanes of a warp meet only at warp-wide operations.
#pragma once
#include <vector_types.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "simt/config.h"
#include "simt/error.h"
#include "simt/fiber.h"
#include "simt/sanitizers.h"
#include "simt/stats.h"

namespace simt {

struct Cta;
struct Warp;

constexpr size_t kMaxSharedBytes = 227 * 1024;  // of a block on sm_90, the largest there is
// Memory of nobody below and above a block's. Also its alignment: what the widest TMA and wgmma swizzle needs.
constexpr size_t kSharedGap = 1024;

// Where a thread waits: a literal, and two numbers whose meaning goes with it (see describe_wait in machine.cpp).
struct Wait {
  char const* what = nullptr;  // nullptr: it does not wait
  uint32_t a = 0, b = 0;
};

// State that a facility outside the core keeps per thread or per block; dropped when the block is over.
struct Facility {
  virtual ~Facility() = default;
  // Of a thread: called on it when it exits. Of a block: called when all its threads have. Throws Error if work is left
  // that a kernel must wait for.
  virtual void check_at_exit() {}
};

struct CpAsync {
  char* dst;
  char const* src;
  uint32_t bytes, src_bytes;  // the rest is filled with zeros
  uint32_t group;
  bool landed;
};

struct Thread : Fiber {
  uint3 tid{};
  unsigned index = 0, lane = 0;  // index counts the threads of the block
  Warp* warp = nullptr;
  Cta* cta = nullptr;
  bool exited = false;
  Wait wait;
  Thread* next_ready = nullptr;  // of the scheduler

  std::vector<CpAsync> cp_async;  // in order of issue; entries before cp_async_head are done
  size_t cp_async_head = 0;
  uint32_t cp_async_group = 0;  // the one that is open

  std::unique_ptr<Facility> async_proxy;  // wgmma and bulk copies (simt/async_proxy.h)
};

// Lanes of one warp that meet in one operation.
struct Rendezvous {
  void const* tag = nullptr;
  char const* name = nullptr;
  uint32_t mask = 0, arrived = 0;
  uint32_t generation = 0;
  void* slot[32];  // what each lane brought
  char hb[2];      // one per parity of generation: a lane that wakes late must not acquire an early arriver of the next
};

struct Warp {
  Rendezvous rendezvous[32];  // several at once where the masks are disjoint
  uint32_t busy = 0;          // which of them have waiting lanes
  Thread* lane[32] = {};
  Thread *ready_first = nullptr, *ready_last = nullptr;  // of the scheduler
};

struct NamedBarrier {
  uint32_t expected = 0, arrived = 0, generation = 0;
  char hb[2];
  std::vector<Thread*> waiting;
};

struct Mbarrier {
  uint32_t offset = 0;  // in shared memory
  bool valid = false;
  uint32_t expected = 0, pending = 0;  // arrivals
  int64_t tx = 0;                      // bytes announced and not yet arrived
  uint32_t phase = 0;
  char hb[2];  // one per parity of phase
  std::vector<Thread*> waiting;
};

struct Cta {
  uint3 bid{};
  dim3 bdim, gdim;
  char* smem = nullptr;
  size_t smem_bytes = 0;
  unsigned nthreads = 0, nexited = 0;
  std::vector<Warp> warps;
  NamedBarrier bars[16];
  std::deque<Mbarrier> mbarriers;
  // Per 16 bytes of shared memory: how many asynchronous copies are on their way there.
  std::vector<uint8_t> in_flight;
  std::unique_ptr<Facility> async_proxy;
};

// A small generator (splitmix64).
struct Random {
  uint64_t state = 0;
  uint64_t operator()() {
    uint64_t z = (state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  bool one_in(uint64_t n) { return (*this)() % n == 0; }
};

// Work of an asynchronous engine, and who asked for it. The function stays where its issuer made it.
struct EngineOp {
  std::unique_ptr<std::function<void()>> run;
  Thread* issuer;
};

// Of the blocks of one launch.
struct Progress {
  std::atomic<uint64_t> running{0}, finished{0};
};

struct Machine {
  Config config;
  Random random;
  Cta cta;
  std::deque<Thread> threads;  // of the largest block so far
  Fiber main;                  // the OS thread, while threads run
  void (*body)(void const* context, char* smem) = nullptr;
  void const* context = nullptr;
  std::string error;  // the first of this block; empty: none
  int error_thread = -1;
  bool unwinding = false;  // the block has failed; its threads end where they wait

  // The scheduler.
  std::vector<Thread*> ready;  // kRoundRobin: a ring of ready_count from ready_head on; kRandom: the first ready_count
  size_t ready_head = 0, ready_count = 0;
  std::vector<Warp*> priority;  // kPriority: highest first
  std::deque<EngineOp> engine_ops;
  void* engine_tsan_fiber = nullptr;
  uint64_t cp_async_pending = 0;
  uint64_t failed_polls = 0;  // since a waiting thread became ready
  Progress* progress = nullptr;
  uint64_t finished_seen = 0;                           // of it, when all threads last polled without success,
  std::chrono::steady_clock::time_point polling_since;  // which they have done since then

  char* smem = nullptr;
};

// The thread that runs, and its machine. Set by the scheduler; valid inside a kernel only.
extern __thread Thread* t_self __attribute__((tls_model("initial-exec")));
extern __thread Machine* t_machine __attribute__((tls_model("initial-exec")));

SIMT_NO_TSAN inline Thread& self() { return *t_self; }
SIMT_NO_TSAN inline Machine& machine() { return *t_machine; }

// ---- For primitives (all under NoTrack) ---------------------------------------------------------------------------

void push_ready(Thread& thread);                                  // `thread` no longer waits
void block_on(char const* what, uint32_t a = 0, uint32_t b = 0);  // runs others until push_ready(self())
void yield();                                                     // lets others run
// The same after looking for something that was not there yet. Throws when nobody does anything but look: no thread of
// the block, and no other block, which may be what it waits for.
void yield_after_poll(char const* what);
// A point where seeded schedules may switch although the thread need not wait.
void maybe_yield();

// Hands work to an asynchronous engine (TMA). It runs at once (kEarly), when no thread can run (kLate) or at some point
// (kRandom); for ThreadSanitizer as a thread of its own, which knows what the issuer knew. It may throw Error.
void push_engine_op(std::function<void()> op);

// As fail, for where nothing can be thrown: the thread ends when it next waits.
__attribute__((cold, format(printf, 1, 2))) void fail_at_wait(char const* format, ...);

// ---- Shared memory ------------------------------------------------------------------------------------------------

// The 32-bit shared address of p: its offset in the block's shared memory. Throws outside of it.
uint32_t smem_offset(void const* p);
// Whether p is in shared memory or so near to it that it was meant to be. Every store of a kernel asks.
SIMT_NO_TSAN inline bool is_shared(void const* p) {
  auto const offset = reinterpret_cast<uintptr_t>(p) - reinterpret_cast<uintptr_t>(t_machine->smem) + kSharedGap;
  return offset < kMaxSharedBytes + 2 * kSharedGap;
}
inline char* smem_at(uint32_t offset) { return self().cta->smem + offset; }
// Throws unless [offset, offset + bytes) is in shared memory and offset is a multiple of `alignment`.
void check_smem(char const* what, uint32_t offset, uint32_t bytes, uint32_t alignment);

// ---- Launch -------------------------------------------------------------------------------------------------------

struct LaunchParams {
  char const* name = "kernel";
  dim3 grid{1, 1, 1}, block{1, 1, 1};
  size_t smem_bytes = 0;
  void (*body)(void const* context, char* smem) = nullptr;  // one thread of the kernel
  void const* context = nullptr;
};

// Runs one block to its end on this OS thread, whose machine m is; what went wrong is in m.error.
void run_block(Machine& m, LaunchParams const& params, uint64_t block);
char* allocate_shared();  // a machine's, for the largest block

// Runs every block, several at a time on OS threads of their own (under ThreadSanitizer on the calling one). Shared
// memory is full of 0xFF before each block and 1024-byte aligned. Throws the first Error.
void launch(LaunchParams const& params);

template <class Body>  // body(smem)
void launch(dim3 grid, dim3 block, size_t smem_bytes, Body const& body) {
  LaunchParams params;
  params.grid = grid;
  params.block = block;
  params.smem_bytes = smem_bytes;
  params.body = [](void const* context, char* smem) { (*static_cast<Body const*>(context))(smem); };
  params.context = &body;
  launch(params);
}

}  // namespace simt
