// What AddressSanitizer and ThreadSanitizer must be told about an emulated GPU. Everything is empty without them.
//
// ThreadSanitizer sees every CUDA thread as a thread. The emulator's own bookkeeping is hidden from it (NoTrack,
// SIMT_NO_TSAN); what a CUDA operation reads, writes and orders is told by note_read, note_write, hb_release,
// hb_acquire.
#pragma once
#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#define SIMT_ASAN 1
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define SIMT_ASAN 0
#endif

#if defined(__SANITIZE_THREAD__)
#define SIMT_TSAN 1
#define SIMT_NO_TSAN __attribute__((noinline, no_sanitize("thread")))
extern "C" {
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_set_fiber_name(void* fiber, char const* name);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void __tsan_read_range(void* address, unsigned long size);
void __tsan_write_range(void* address, unsigned long size);
void AnnotateIgnoreReadsBegin(char const* file, int line);
void AnnotateIgnoreReadsEnd(char const* file, int line);
void AnnotateIgnoreWritesBegin(char const* file, int line);
void AnnotateIgnoreWritesEnd(char const* file, int line);
}
#else
#define SIMT_TSAN 0
#define SIMT_NO_TSAN
#endif

namespace simt {

#if SIMT_TSAN
// The current thread reads or writes these bytes. Needed even beside a memcpy: the compiler expands a copy of constant
// size inline, where ThreadSanitizer does not see it.
inline void note_read(void const* p, size_t bytes) { __tsan_read_range(const_cast<void*>(p), bytes); }
inline void note_write(void* p, size_t bytes) { __tsan_write_range(p, bytes); }
// Happens-before from every hb_release(p) to every later hb_acquire(p).
inline void hb_release(void* p) { __tsan_release(p); }
inline void hb_acquire(void* p) { __tsan_acquire(p); }
// Memory accesses in its lifetime are not looked at.
struct NoTrack {
  NoTrack() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~NoTrack() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
  NoTrack(NoTrack const&) = delete;
};
#else
inline void note_read(void const*, size_t) {}
inline void note_write(void*, size_t) {}
inline void hb_release(void*) {}
inline void hb_acquire(void*) {}
struct NoTrack {
  NoTrack() {}
  ~NoTrack() {}
  NoTrack(NoTrack const&) = delete;
};
#endif

// Makes AddressSanitizer report every access to these bytes, until unpoison.
inline void asan_poison([[maybe_unused]] void const* p, [[maybe_unused]] size_t bytes) {
#if SIMT_ASAN
  __asan_poison_memory_region(p, bytes);
#endif
}
inline void asan_unpoison([[maybe_unused]] void const* p, [[maybe_unused]] size_t bytes) {
#if SIMT_ASAN
  __asan_unpoison_memory_region(p, bytes);
#endif
}

}  // namespace simt
