#include "simt/cluster.h"

#include "simt/async_proxy.h"
#include "simt/sync.h"

namespace simt {
namespace {

auto& barrier() {
  NoTrack no_track;
  Sm90Block& block = sm90_block();
  if (block.cluster_barrier.thread_generation.empty()) {
    block.cluster_barrier.thread_generation.resize(block.cta.nthreads);
  }
  return block.cluster_barrier;
}

}  // namespace

void check_cluster_rank(char const* what, uint32_t rank) {
  if (rank != 0) fail("%s: block rank %u of a cluster; only clusters of one block are emulated", what, rank);
}

void cluster_arrive() {
  auto& b = barrier();
  NoTrack no_track;
  hb_release(&b.hb[b.generation & 1]);
  unsigned& mine = b.thread_generation[self().index];
  if (mine != 0) fail("barrier.cluster.arrive: the thread has arrived before and not waited since");
  mine = b.generation + 1;
  if (++b.arrived < self().cta->nthreads) return;
  b.arrived = 0;
  ++b.generation;
  for (Thread* thread : b.waiting) push_ready(*thread);
  b.waiting.clear();
}

void cluster_wait() {
  auto& b = barrier();
  unsigned phase;
  {
    NoTrack no_track;
    unsigned& mine = b.thread_generation[self().index];
    if (mine == 0) fail("barrier.cluster.wait: the thread has not arrived");
    phase = mine - 1;
    mine = 0;
    if (b.generation == phase) {
      b.waiting.push_back(&self());
      block_on("barrier.cluster", 1u << self().lane, self().index / 32);
    }
  }
  hb_acquire(&b.hb[phase & 1]);
}

uint32_t elected_lane() {
  static char const tag = 0;
  warp_collective(&tag, "elect.sync", kFullWarp, nullptr, [](void**) {});
  return 0;
}

}  // namespace simt
