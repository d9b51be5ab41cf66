#include "simt/async_copy.h"

#include <algorithm>
#include <cstring>

#include "simt/async_proxy.h"

namespace simt {
namespace {

constexpr uint32_t kChunk = 16;  // of Cta::in_flight

// Moves the data. Hidden from ThreadSanitizer: the issuing thread is told of at the issue and at the wait.
SIMT_NO_TSAN void land(Thread const& issuer, CpAsync& copy) {
  if (copy.landed) return;
  copy.landed = true;
  --machine().cp_async_pending;
  auto const offset = static_cast<uint32_t>(copy.dst - machine().cta.smem);
  end_flight(offset, copy.bytes);
  note_generic_write(issuer, offset, copy.bytes);
  std::memcpy(copy.dst, copy.src, copy.src_bytes);
  std::memset(copy.dst + copy.src_bytes, 0, copy.bytes - copy.src_bytes);
}

void wait_while(Thread& me, uint32_t first_pending_group) {
  while (me.cp_async_head < me.cp_async.size() && me.cp_async[me.cp_async_head].group < first_pending_group) {
    CpAsync& copy = me.cp_async[me.cp_async_head++];
    note_write(copy.dst, copy.bytes);
    NoTrack no_track;
    land(me, copy);
  }
  if (me.cp_async_head == me.cp_async.size()) {
    me.cp_async.clear();
    me.cp_async_head = 0;
  }
}

}  // namespace

void begin_flight(uint32_t offset, uint32_t bytes) {
  Cta& cta = machine().cta;
  std::memset(cta.smem + offset, 0xFF, bytes);
  asan_poison(cta.smem + offset, bytes);
  for (uint32_t i = offset / kChunk; i <= (offset + bytes - 1) / kChunk; ++i) ++cta.in_flight[i];
}

void end_flight(uint32_t offset, uint32_t bytes) {
  Cta& cta = machine().cta;
  asan_unpoison(cta.smem + offset, bytes);
  for (uint32_t i = offset / kChunk; i <= (offset + bytes - 1) / kChunk; ++i) --cta.in_flight[i];
}

void check_landed(char const* what, uint32_t offset, uint32_t bytes) {
  auto const& in_flight = machine().cta.in_flight;
  for (uint32_t i = offset / kChunk; i <= (offset + bytes - 1) / kChunk; ++i) {
    if (in_flight[i])
      fail("%s: an asynchronous copy to shared address %u was issued and not waited for", what, i * kChunk);
  }
}

SIMT_NO_TSAN void cp_async(void* dst, void const* src, uint32_t bytes, uint32_t src_bytes) {
  Thread& me = self();
  Machine& m = machine();
  uint32_t const offset = smem_offset(dst);
  if (bytes != 4 && bytes != 8 && bytes != 16) fail("cp.async: the size must be 4, 8 or 16 bytes, got %u", bytes);
  check_smem("cp.async", offset, bytes, bytes);
  if (src_bytes > bytes) fail("cp.async: %u source bytes for a copy of %u", src_bytes, bytes);
  if (reinterpret_cast<uintptr_t>(src) % bytes != 0) {
    fail("cp.async of %u bytes: the global address %p is not a multiple of that", bytes, src);
  }
  note_read(src, src_bytes);
  note_write(smem_at(offset), bytes);
#if SIMT_ASAN
  for (uint32_t i = 0; i < src_bytes; ++i) static_cast<void>(static_cast<char const volatile*>(src)[i]);
#endif
  NoTrack no_track;
  begin_flight(offset, bytes);
  ++m.cp_async_pending;
  CpAsync copy{smem_at(offset), static_cast<char const*>(src), bytes, src_bytes, me.cp_async_group, false};
  AsyncTiming const timing = m.config.async;
  if (timing == AsyncTiming::kEarly || (timing == AsyncTiming::kRandom && m.random.one_in(4))) land(me, copy);
  me.cp_async.push_back(copy);
}

SIMT_NO_TSAN void cp_async_commit() { ++self().cp_async_group; }

SIMT_NO_TSAN void cp_async_wait_group(int pending) {
  Thread& me = self();
  uint32_t const keep = static_cast<uint32_t>(pending);
  if (me.cp_async_group > keep) wait_while(me, me.cp_async_group - keep);
}

SIMT_NO_TSAN void cp_async_wait_all() { wait_while(self(), self().cp_async_group + 1); }

SIMT_NO_TSAN void cp_async_land_one() {
  Machine& m = machine();
  if (m.cp_async_pending == 0) return;
  size_t const first = m.random() % m.cta.nthreads;
  for (size_t i = 0; i < m.cta.nthreads; ++i) {
    Thread& thread = m.threads[(first + i) % m.cta.nthreads];
    size_t const count = thread.cp_async.size() - thread.cp_async_head;
    if (count == 0) continue;
    land(thread, thread.cp_async[thread.cp_async_head + m.random() % count]);
    return;
  }
}

SIMT_NO_TSAN void cp_async_check_exit() {
  Thread& me = self();
  if (me.cp_async_head < me.cp_async.size()) {
    fail("the thread exits with %zu cp.async that it has not waited for", me.cp_async.size() - me.cp_async_head);
  }
}

}  // namespace simt
