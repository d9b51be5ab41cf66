// Execution contexts with a stack of their own, which switch to one another within an OS thread.
#pragma once
#include <cstddef>

namespace simt {

struct Fiber {
  void* stack_pointer = nullptr;  // where it goes on; without an assembly switch, its ucontext_t
  char* stack = nullptr;
  size_t stack_bytes = 0;
  void* asan_fake_stack = nullptr;
  void* tsan_fiber = nullptr;
};

// Gives `fiber` a stack with a guard page below it. `index` staggers the stacks over the sets of the caches.
// Fibers are kept and reused for the life of the process.
void fiber_create(Fiber& fiber, unsigned index);
// The next switch to `fiber` calls entry(), which must never return. What ran on its stack before is dropped.
void fiber_start(Fiber& fiber, void (*entry)());
// Makes `fiber` stand for the calling OS thread, so that others can switch back to it.
void fiber_adopt_os_thread(Fiber& fiber);
// The first statement of an entry function.
void fiber_entered();
// Goes on in `to`; returns when somebody switches back. With `forever`, nobody will.
void fiber_switch(Fiber& from, Fiber& to, bool forever = false);

}  // namespace simt
