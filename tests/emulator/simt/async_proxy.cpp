#include "simt/async_proxy.h"

namespace simt {
namespace {

constexpr uint32_t kWordBytes = 4;
constexpr uint32_t kIndexMask = (1u << 11) - 1, kKindBit = 1u << 11, kFenceShift = 12;
enum Kind { kData, kBarrierInit };

uint32_t record(Sm90Block const& block, unsigned thread, Kind kind) {
  return (thread + 1) | (kind == kBarrierInit ? kKindBit : 0) | (block.fences[kind][thread] << kFenceShift);
}

void write_records(Sm90Block& block, uint32_t offset, size_t bytes, uint32_t value) {
  size_t const end = (offset + bytes + kWordBytes - 1) / kWordBytes;
  for (size_t word = offset / kWordBytes; word < end && word < block.writer.size(); ++word) block.writer[word] = value;
}

Sm90Block& block_of(Cta& cta) {
  if (!cta.async_proxy) cta.async_proxy = std::make_unique<Sm90Block>(cta);
  return static_cast<Sm90Block&>(*cta.async_proxy);
}

}  // namespace

Sm90Block::Sm90Block(Cta& cta) : cta(cta), writer((cta.smem_bytes + kWordBytes - 1) / kWordBytes) {
  for (auto& of_kind : fences) of_kind.resize(cta.nthreads);
}

Sm90Block& sm90_block() { return block_of(machine().cta); }

Sm90Thread& sm90_thread() {
  Thread& thread = self();
  if (!thread.async_proxy) thread.async_proxy = std::make_unique<Sm90Thread>();
  return static_cast<Sm90Thread&>(*thread.async_proxy);
}

void Sm90Thread::check_at_exit() {
  if (wgmma_groups.size() > 1 || !wgmma_groups.back().empty()) {
    fail("thread exits with wgmma in flight (warpgroup_wait<0> is missing)");
  }
  for (int unfinished : bulk_groups) {
    if (unfinished != 0) fail("thread exits with a TMA store in flight (tma_store_arrive, tma_store_wait<0>)");
  }
}

void note_generic_write(Thread const& writer, uint32_t offset, uint32_t bytes) {
  NoTrack no_track;
  Sm90Block& block = block_of(*writer.cta);
  write_records(block, offset, bytes, record(block, writer.index, kData));
}

void note_shared_store(void const* p, size_t bytes, size_t alignment) {
  Cta const& cta = *t_self->cta;
  auto const offset = static_cast<size_t>(static_cast<char const*>(p) - cta.smem);
  if (offset >= cta.smem_bytes || bytes > cta.smem_bytes - offset) {
    fail_at_wait("store of %zu bytes at shared address %lld, outside of the block's %zu bytes", bytes,
                 static_cast<long long>(offset), cta.smem_bytes);
  } else if (offset % alignment != 0) {
    fail_at_wait("store of %zu bytes at shared address %zu, which is not a multiple of that", bytes, offset);
  } else {
    note_generic_write(*t_self, static_cast<uint32_t>(offset), static_cast<uint32_t>(bytes));
  }
}

void note_barrier_init(void const* p) {
  uint32_t const offset = smem_offset(p);
  NoTrack no_track;
  Sm90Block& block = sm90_block();
  write_records(block, offset, 8, record(block, self().index, kBarrierInit));
}

void fence_barrier_init() {
  NoTrack no_track;
  ++sm90_block().fences[kBarrierInit][self().index];
}

void fence_proxy_async() {
  NoTrack no_track;
  for (auto& of_kind : sm90_block().fences) ++of_kind[self().index];
}

void check_visible(char const* what, uint32_t offset, uint32_t bytes) {
  NoTrack no_track;
  Sm90Block const& block = sm90_block();
  for (uint32_t word = offset / kWordBytes; word * kWordBytes < offset + bytes; ++word) {
    uint32_t const last = block.writer[word];
    if (last == 0) continue;
    Kind const kind = last & kKindBit ? kBarrierInit : kData;
    unsigned const thread = (last & kIndexMask) - 1;
    if (last != record(block, thread, kind)) continue;  // it has executed a fence since
    if (kind == kBarrierInit) {
      fail(
          "%s the mbarrier at shared address %u, which thread %u initialised without a fence since "
          "(fence_barrier_init)",
          what, word * kWordBytes, thread);
    }
    fail(
        "%s shared address %u, which thread %u stored through the generic proxy without a fence.proxy.async "
        "since (fence_view_async_shared, tma_store_fence)",
        what, word * kWordBytes, thread);
  }
}

void note_async_write(char const* what, uint32_t offset, uint32_t bytes) {
  check_visible(what, offset, bytes);
  NoTrack no_track;
  write_records(sm90_block(), offset, bytes, 0);
}

}  // namespace simt

#if !SIMT_ASAN
namespace {
inline void note_plain_store(void const* p, size_t bytes, size_t alignment) {
  // Most stores are to memory of the thread's own.
  if (simt::t_self != nullptr && simt::is_shared(p)) simt::note_shared_store(p, bytes, alignment);
}
}  // namespace

// What -fsanitize=kernel-address calls before stores, and elsewhere. They must not throw, the compiler knows them.
extern "C" {
void __asan_store1_noabort(void const* p) { note_plain_store(p, 1, 1); }
void __asan_store2_noabort(void const* p) { note_plain_store(p, 2, 2); }
void __asan_store4_noabort(void const* p) { note_plain_store(p, 4, 4); }
void __asan_store8_noabort(void const* p) { note_plain_store(p, 8, 8); }
void __asan_store16_noabort(void const* p) { note_plain_store(p, 16, 16); }
void __asan_storeN_noabort(void const* p, size_t bytes) { note_plain_store(p, bytes, 1); }
void __asan_handle_no_return() {}
void __asan_before_dynamic_init(void const*) {}
void __asan_after_dynamic_init() {}
}
#endif
