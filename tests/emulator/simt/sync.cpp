#include "simt/sync.h"

namespace simt {
namespace {

// The rendezvous of these lanes, begun if there is none. Lanes of one mask that have not all met are in one rendezvous.
Rendezvous& rendezvous_of(Warp& warp, uint32_t mask) {
  for (uint32_t rest = warp.busy; rest; rest &= rest - 1) {
    Rendezvous& r = warp.rendezvous[__builtin_ctz(rest)];
    if (r.mask == mask) return r;
  }
  unsigned const free_slot = __builtin_ctz(~warp.busy);  // there is one: each busy slot has a waiting lane
  Rendezvous& r = warp.rendezvous[free_slot];
  warp.busy |= 1u << free_slot;
  r.mask = mask;
  r.arrived = 0;
  r.tag = nullptr;
  return r;
}

uint32_t first_lane(uint32_t mask) { return static_cast<uint32_t>(__builtin_ctz(mask)); }

}  // namespace

SIMT_NO_TSAN Rendezvous* warp_arrive(void const* tag, char const* name, uint32_t mask, void* arg) {
  Thread& me = self();
  Warp& warp = *me.warp;
  if (!((mask >> me.lane) & 1)) fail("%s: the mask 0x%08x does not contain lane %u", name, mask, me.lane);
  Rendezvous& r = rendezvous_of(warp, mask);
  if (r.arrived == 0) {
    r.tag = tag;
    r.name = name;
  } else if (r.tag != tag) {
    fail("divergent warp: lane %u is at %s while lane %u waits at %s", me.lane, name, first_lane(r.arrived), r.name);
  }
  r.slot[me.lane] = arg;
  r.arrived |= 1u << me.lane;
  if (r.arrived == mask) return &r;
  block_on(name, mask, static_cast<uint32_t>(me.index / 32));
  return nullptr;
}

SIMT_NO_TSAN void warp_release(Rendezvous& r) {
  ++t_stats.collectives;
  Thread& me = self();
  Warp& warp = *me.warp;
  warp.busy &= ~(1u << (&r - warp.rendezvous));
  ++r.generation;
  for (uint32_t rest = r.mask & ~(1u << me.lane); rest; rest &= rest - 1) push_ready(*warp.lane[__builtin_ctz(rest)]);
  maybe_yield();
}

SIMT_NO_TSAN void syncwarp(uint32_t mask) {
  static char tag;
  void* hb;
  {
    NoTrack no_track;
    Rendezvous& r = rendezvous_of(*self().warp, mask);
    hb = &r.hb[r.generation & 1];
  }
  hb_release(hb);
  warp_collective(&tag, "__syncwarp", mask, nullptr, [](void**) {});
  hb_acquire(hb);
}

uint32_t ballot(uint32_t mask, bool predicate, char const* name) {
  struct Vote {
    bool predicate;
    uint32_t result;
  } vote{predicate, 0};
  warp_collective(name, name, mask, &vote, [mask](void** slots) {
    uint32_t result = 0;
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
      int const lane = __builtin_ctz(rest);
      if (static_cast<Vote*>(slots[lane])->predicate) result |= 1u << lane;
    }
    for (uint32_t rest = mask; rest; rest &= rest - 1) static_cast<Vote*>(slots[__builtin_ctz(rest)])->result = result;
  });
  NoTrack no_track;  // written by another lane
  return vote.result;
}

uint64_t shuffle_bits(uint32_t mask, uint64_t bits, int source_lane, char const* name) {
  struct Exchange {
    uint64_t in, out;
    int source_lane;
  } exchange{bits, 0, source_lane};
  warp_collective(name, name, mask, &exchange, [mask, name](void** slots) {
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
      int const lane = __builtin_ctz(rest);
      auto& e = *static_cast<Exchange*>(slots[lane]);
      if (e.source_lane < 0 || e.source_lane >= 32 || !((mask >> e.source_lane) & 1)) {
        fail("%s: lane %d reads lane %d, which does not take part", name, lane, e.source_lane);
      }
      e.out = static_cast<Exchange*>(slots[e.source_lane])->in;
    }
  });
  NoTrack no_track;  // written by another lane
  return exchange.out;
}

namespace {

SIMT_NO_TSAN void arrive_at_barrier(uint32_t id, uint32_t num_threads, bool wait, char const* what) {
  Thread& me = self();
  if (id >= 16) fail("%s: the barrier must be 0 to 15, got %u", what, id);
  NamedBarrier& barrier = me.cta->bars[id];
  // Two in turn: who wakes late must not acquire what an early arriver of the next phase released.
  void* hb = &barrier.hb[barrier.generation & 1];
  hb_release(hb);
  {
    NoTrack no_track;
    if (barrier.arrived && barrier.expected != num_threads) {
      fail("%s: barrier %u is used for %u threads, and by others for %u", what, id, num_threads, barrier.expected);
    }
    barrier.expected = num_threads;
    if (++barrier.arrived == num_threads) {
      barrier.arrived = 0;
      ++barrier.generation;
      for (Thread* thread : barrier.waiting) push_ready(*thread);
      barrier.waiting.clear();
      maybe_yield();
    } else if (wait) {
      barrier.waiting.push_back(&me);
      block_on(what, id, num_threads);
    }
  }
  if (wait) hb_acquire(hb);
}

SIMT_NO_TSAN void check_count(uint32_t num_threads, char const* what) {
  uint32_t const in_block = machine().cta.nthreads;
  if (num_threads == 0 || num_threads % 32 != 0 || num_threads > in_block) {
    fail("%s: the number of threads must be a multiple of 32 and at most the block's %u, got %u", what, in_block,
         num_threads);
  }
}

}  // namespace

void bar_sync(uint32_t id, uint32_t num_threads) {
  check_count(num_threads, "bar.sync");
  arrive_at_barrier(id, num_threads, true, "bar.sync");
}
void bar_arrive(uint32_t id, uint32_t num_threads) {
  check_count(num_threads, "bar.arrive");
  arrive_at_barrier(id, num_threads, false, "bar.arrive");
}
void syncthreads() { arrive_at_barrier(0, machine().cta.nthreads, true, "__syncthreads"); }

}  // namespace simt
