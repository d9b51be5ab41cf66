#include "simt/fiber.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>

#include "simt/error.h"
#include "simt/sanitizers.h"

#if !defined(__x86_64__) && !defined(SIMT_UCONTEXT)
#define SIMT_UCONTEXT
#endif
#if defined(SIMT_UCONTEXT)
#include <ucontext.h>
#endif

namespace simt {
namespace {

// AddressSanitizer makes frames of unrolled code several times as large. Only what is touched takes memory.
constexpr size_t kStackBytes = SIMT_ASAN ? 4u << 20 : 1u << 20;
// Unwinders read above the first frame.
constexpr size_t kHeadroom = 1024;
// All stacks are used at the same depth; unstaggered they would share a few sets of the caches.
constexpr size_t kStagger = 320, kStaggerCount = 32;

}  // namespace

#if defined(SIMT_UCONTEXT)

static void start_context(Fiber& fiber, size_t stack_bytes, void (*entry)()) {
  auto* context = static_cast<ucontext_t*>(fiber.stack_pointer);
  if (!context) fiber.stack_pointer = context = new ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = fiber.stack;
  context->uc_stack.ss_size = stack_bytes;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
}
SIMT_NO_TSAN static void switch_context(Fiber& from, Fiber& to) {
  if (!from.stack_pointer) from.stack_pointer = new ucontext_t;
  swapcontext(static_cast<ucontext_t*>(from.stack_pointer), static_cast<ucontext_t*>(to.stack_pointer));
}

#else

// Saves what a call must preserve (System V ABI) on the old stack, and restores it from the new one.
extern "C" void simt_switch_stack(void** save, void* load);
asm(R"(
.text
.p2align 4
.globl simt_switch_stack
.hidden simt_switch_stack
.type simt_switch_stack, @function
simt_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch_stack, .-simt_switch_stack
)");

static void start_context(Fiber& fiber, size_t stack_bytes, void (*entry)()) {
  auto** top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(fiber.stack) + stack_bytes) & ~uintptr_t{63});
  *--top = nullptr;  // entry's return address: after it `ret` leaves the stack as a call does
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber.stack_pointer = top;
}
SIMT_NO_TSAN static void switch_context(Fiber& from, Fiber& to) {
  simt_switch_stack(&from.stack_pointer, to.stack_pointer);
}

#endif

void fiber_create(Fiber& fiber, unsigned index) {
  size_t const page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* memory =
      mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) fail("no memory for the stack of thread %u", index);
  mprotect(memory, page, PROT_NONE);
  fiber.stack = static_cast<char*>(memory) + page;
  fiber.stack_bytes = kStackBytes - index % kStaggerCount * kStagger;
#if SIMT_TSAN
  char name[32];
  std::snprintf(name, sizeof(name), "CUDA thread %u", index);
  fiber.tsan_fiber = __tsan_create_fiber(0);
  __tsan_set_fiber_name(fiber.tsan_fiber, name);
#endif
}

void fiber_start(Fiber& fiber, void (*entry)()) {
  asan_unpoison(fiber.stack, fiber.stack_bytes);  // frames that an error left behind
  start_context(fiber, fiber.stack_bytes - kHeadroom, entry);
}

void fiber_adopt_os_thread([[maybe_unused]] Fiber& fiber) {
#if SIMT_TSAN
  fiber.tsan_fiber = __tsan_get_current_fiber();
#endif
#if SIMT_ASAN
  pthread_attr_t attributes;
  void* stack;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &stack, &fiber.stack_bytes);
  pthread_attr_destroy(&attributes);
  fiber.stack = static_cast<char*>(stack);
#endif
}

void fiber_entered() {
#if SIMT_ASAN
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

SIMT_NO_TSAN void fiber_switch(Fiber& from, Fiber& to, [[maybe_unused]] bool forever) {
#if SIMT_ASAN
  __sanitizer_start_switch_fiber(forever ? nullptr : &from.asan_fake_stack, to.stack, to.stack_bytes);
#endif
#if SIMT_TSAN
  __tsan_switch_to_fiber(to.tsan_fiber, 1 /* without happens-before */);
#endif
  switch_context(from, to);
#if SIMT_ASAN
  __sanitizer_finish_switch_fiber(from.asan_fake_stack, nullptr, nullptr);
#endif
}

}  // namespace simt
