#include "simt/mbarrier.h"

namespace simt {
namespace {

constexpr uint32_t kMaxCount = (1u << 20) - 1;  // PTX ISA: of pending arrivals and of transaction bytes

Mbarrier* find(uint32_t offset) {
  for (Mbarrier& barrier : machine().cta.mbarriers) {
    if (barrier.offset == offset) return &barrier;
  }
  return nullptr;
}

uint32_t checked_offset(void const* p, char const* what) {
  uint32_t const offset = smem_offset(p);
  check_smem(what, offset, 8, 8);
  return offset;
}

SIMT_NO_TSAN void arrive(void const* p, uint32_t count, int64_t tx, char const* what) {
  Mbarrier& barrier = mbar_get(p, what);
  hb_release(&barrier.hb[barrier.phase & 1]);
  NoTrack no_track;
  if (barrier.pending < count) {
    fail("%s: too many arrivals at the mbarrier at shared address %u: %u expected in a phase, %u pending, %u more",
         what, barrier.offset, barrier.expected, barrier.pending, count);
  }
  barrier.pending -= count;
  barrier.tx -= tx;
  if (barrier.pending == 0 && barrier.tx == 0) {
    ++barrier.phase;
    barrier.pending = barrier.expected;
    for (Thread* thread : barrier.waiting) push_ready(*thread);
    barrier.waiting.clear();
  }
}

}  // namespace

SIMT_NO_TSAN Mbarrier& mbar_get(void const* p, char const* what) {
  NoTrack no_track;
  uint32_t const offset = checked_offset(p, what);
  Mbarrier* barrier = find(offset);
  if (!barrier || !barrier->valid) fail("%s: the mbarrier at shared address %u is not initialised", what, offset);
  return *barrier;
}

void mbar_init(void const* p, uint32_t count) {
  NoTrack no_track;
  uint32_t const offset = checked_offset(p, "mbarrier.init");
  if (count == 0 || count > kMaxCount) fail("mbarrier.init: the count must be 1 to %u, got %u", kMaxCount, count);
  Mbarrier* barrier = find(offset);
  if (barrier && !barrier->waiting.empty())
    fail("mbarrier.init: threads wait at the mbarrier at shared address %u", offset);
  if (!barrier) barrier = &machine().cta.mbarriers.emplace_back();
  barrier->offset = offset;
  barrier->valid = true;
  barrier->expected = barrier->pending = count;
  barrier->tx = 0;
  barrier->phase = 0;
}

void mbar_invalidate(void const* p) {
  NoTrack no_track;
  mbar_get(p, "mbarrier.inval").valid = false;
}

void mbar_arrive(void const* p, uint32_t count) { arrive(p, count, 0, "mbarrier.arrive"); }

void mbar_expect_tx(void const* p, uint32_t bytes) {
  Mbarrier& barrier = mbar_get(p, "mbarrier.expect_tx");
  NoTrack no_track;
  barrier.tx += bytes;
  if (barrier.tx > kMaxCount) {
    fail("mbarrier.expect_tx: %lld transaction bytes at shared address %u; at most %u fit",
         static_cast<long long>(barrier.tx), barrier.offset, kMaxCount);
  }
}

void mbar_complete_tx(void const* p, uint32_t bytes) { arrive(p, 0, bytes, "mbarrier.complete_tx"); }

SIMT_NO_TSAN bool mbar_test(void const* p, uint32_t parity) {
  Mbarrier& barrier = mbar_get(p, "mbarrier.test_wait");
  bool const ended = (barrier.phase & 1) != (parity & 1);
  if (ended) hb_acquire(&barrier.hb[parity & 1]);
  return ended;
}

bool mbar_poll(void const* p, uint32_t parity) {
  if (mbar_test(p, parity)) return true;
  yield_after_poll("at an mbarrier");
  return mbar_test(p, parity);
}

SIMT_NO_TSAN void mbar_wait(void const* p, uint32_t parity) {
  while (!mbar_test(p, parity)) {
    NoTrack no_track;
    Mbarrier& barrier = mbar_get(p, "mbarrier.try_wait");
    barrier.waiting.push_back(&self());
    block_on("mbarrier", barrier.offset, parity & 1);
  }
}

}  // namespace simt
