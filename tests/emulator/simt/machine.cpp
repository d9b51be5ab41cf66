#include "simt/machine.h"

#include <sys/mman.h>

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <thread>
#include <utility>

#include "simt/async_copy.h"

namespace simt {

__thread Thread* t_self __attribute__((tls_model("initial-exec"))) = nullptr;
__thread Machine* t_machine __attribute__((tls_model("initial-exec"))) = nullptr;

void fail(char const* format, ...) {
  char message[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof(message), format, arguments);
  va_end(arguments);
  throw Error(message);
}

void fail_at_wait(char const* format, ...) {
  Machine& m = machine();
  if (!m.error.empty()) return;
  char message[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof(message), format, arguments);
  va_end(arguments);
  m.error = message;
  m.error_thread = static_cast<int>(self().index);
}

// ---- Scheduler ----------------------------------------------------------------------------------------------------

namespace {

constexpr uint64_t kPriorityPeriod = 1024;  // switches between two shuffles of the warps' priorities, on average
constexpr uint64_t kEnginePeriod = 4;       // kRandom: switches between two operations of the engines, on average
constexpr uint64_t kMaxPolls = 1000;        // without success, per thread, before it counts as a deadlock
constexpr std::chrono::seconds kMaxWaitForBlocks{20};  // to end, before it counts as one
constexpr uint64_t kLandPeriod = 8;  // kRandom: switches between two landings of a cp.async, on average

// Thrown where a thread waits when its block has failed, so that nothing of it is left: neither objects on its stack
// nor what it told a sanitizer (NoTrack).
struct Unwound {};

SIMT_NO_TSAN void record_error(Machine& m, int thread, char const* what) {
  NoTrack no_track;
  if (!m.error.empty()) return;
  m.error = what;
  m.error_thread = thread;
}

SIMT_NO_TSAN void run_engine_op(Machine& m, EngineOp const& op) {
  std::function<void()> const* run;
  {
    NoTrack no_track;  // on the issuer's stack or in the queue: the engine itself must not be seen to read it
    run = op.run.get();
  }
#if SIMT_TSAN
  if (!m.engine_tsan_fiber) {
    m.engine_tsan_fiber = __tsan_create_fiber(0);
    __tsan_set_fiber_name(m.engine_tsan_fiber, "copy engine");
  }
  void* const back = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(m.engine_tsan_fiber, 1);
#endif
  hb_acquire(&op.issuer->async_proxy);
  try {
    (*run)();
  } catch (std::exception const& error) {
    record_error(m, -1, error.what());
  }
  hb_release(&m);  // the OS thread acquires it when the block is over
#if SIMT_TSAN
  __tsan_switch_to_fiber(back, 1);
#endif
}

void shuffle_priorities(Machine& m) {
  for (size_t i = m.priority.size(); i > 1; --i) std::swap(m.priority[i - 1], m.priority[m.random() % i]);
}

// The next thread to run, taken out of those that are ready.
SIMT_NO_TSAN Thread* take_ready(Machine& m) {
  --m.ready_count;
  switch (m.config.schedule) {
    case Schedule::kRoundRobin: {
      Thread* thread = m.ready[m.ready_head];
      if (++m.ready_head == m.ready.size()) m.ready_head = 0;
      return thread;
    }
    case Schedule::kRandom: {
      size_t const i = m.random() % (m.ready_count + 1);
      return std::exchange(m.ready[i], m.ready[m.ready_count]);
    }
    case Schedule::kPriority: {
      if (m.random.one_in(kPriorityPeriod)) shuffle_priorities(m);
      for (Warp* warp : m.priority) {
        if (Thread* thread = warp->ready_first) {
          warp->ready_first = thread->next_ready;
          if (!warp->ready_first) warp->ready_last = nullptr;
          return thread;
        }
      }
    }
  }
  __builtin_unreachable();
}

SIMT_NO_TSAN void run_one_engine_op(Machine& m) {
  NoTrack no_track;
  bool const random = m.config.async == AsyncTiming::kRandom;
  auto const op = m.engine_ops.begin() + (random ? m.random() % m.engine_ops.size() : 0);
  EngineOp const taken = std::move(*op);
  m.engine_ops.erase(op);
  run_engine_op(m, taken);
}

// Whoever runs next: a thread, or the OS thread when no thread can or the block has failed.
SIMT_NO_TSAN Thread* pick_next(Machine& m) {
  bool const random = m.config.async == AsyncTiming::kRandom;
  if (random && m.cp_async_pending && m.random.one_in(kLandPeriod)) cp_async_land_one();
  while (!m.engine_ops.empty() && (m.ready_count == 0 || (random && m.random.one_in(kEnginePeriod)))) {
    run_one_engine_op(m);
    if (!m.error.empty()) return nullptr;
  }
  return m.ready_count ? take_ready(m) : nullptr;
}

SIMT_NO_TSAN void switch_from(Thread& me, bool forever) {
  Machine& m = *t_machine;
  Thread* next = nullptr;
  if (m.error.empty()) {
    NoTrack no_track;
    next = pick_next(m);
  }
  if (next == &me) return;
  ++t_stats.switches;
  t_self = next;
  fiber_switch(me, next ? *next : m.main, forever);
  if (m.unwinding) throw Unwound();
}

// What a CUDA thread is. When the block has failed before it began, nothing.
SIMT_NO_TSAN void run_thread() {
  fiber_entered();
  Machine& m = machine();
  Thread& me = self();
  hb_acquire(&m.cta);  // not &m, which threads of this block that are done have released
  try {
    if (m.unwinding) throw Unwound();
    m.body(m.context, m.cta.smem);
    NoTrack no_track;
    cp_async_check_exit();
    if (me.async_proxy) me.async_proxy->check_at_exit();
    ++m.cta.nexited;
  } catch (Unwound const&) {
  } catch (std::exception const& error) {
    record_error(m, static_cast<int>(me.index), error.what());
  } catch (...) {
    record_error(m, static_cast<int>(me.index), "an exception that is no std::exception");
  }
  hb_release(&m);
  me.exited = true;
  switch_from(me, true);  // not under NoTrack: it would never end, and hide the fiber's next thread
  __builtin_unreachable();
}

SIMT_NO_TSAN void enqueue(Machine& m, Thread& thread) {
  switch (m.config.schedule) {
    case Schedule::kRoundRobin: {
      size_t const i = m.ready_head + m.ready_count;
      m.ready[i < m.ready.size() ? i : i - m.ready.size()] = &thread;
      break;
    }
    case Schedule::kRandom: m.ready[m.ready_count] = &thread; break;
    case Schedule::kPriority: {
      Warp& warp = *thread.warp;
      thread.next_ready = nullptr;
      (warp.ready_last ? warp.ready_last->next_ready : warp.ready_first) = &thread;
      warp.ready_last = &thread;
      break;
    }
  }
  ++m.ready_count;
}

}  // namespace

SIMT_NO_TSAN void push_ready(Thread& thread) {
  Machine& m = *t_machine;
  thread.wait = {};
  m.failed_polls = 0;
  enqueue(m, thread);
}

SIMT_NO_TSAN void block_on(char const* what, uint32_t a, uint32_t b) {
  NoTrack no_track;
  Thread& me = self();
  me.wait = {what, a, b};
  switch_from(me, false);
}

SIMT_NO_TSAN void yield() {
  NoTrack no_track;
  Thread& me = self();
  enqueue(machine(), me);
  switch_from(me, false);
}

// Whether one of them still runs, or has ended since this block's threads looked last. Not for long, because the others
// may be waiting, too.
SIMT_NO_TSAN static bool other_blocks_may_help(Machine& m) {
  uint64_t const finished = m.progress->finished;
  auto const now = std::chrono::steady_clock::now();
  if (finished != m.finished_seen) {
    m.finished_seen = finished;
    m.polling_since = now;
    return true;
  }
  return m.progress->running > 1 && now - m.polling_since < kMaxWaitForBlocks;
}

SIMT_NO_TSAN void yield_after_poll(char const* what) {
  NoTrack no_track;
  Machine& m = machine();
  if (++m.failed_polls > m.cta.nthreads && !m.engine_ops.empty()) {
    m.failed_polls = 0;
    run_one_engine_op(m);
    if (!m.error.empty()) throw Error(std::exchange(m.error, std::string()));
  } else if (m.failed_polls > kMaxPolls * m.cta.nthreads) {
    if (!other_blocks_may_help(m)) fail("deadlock: all threads that can run poll; this one %s", what);
    m.failed_polls = 0;
    std::this_thread::yield();
  }
  yield();
}

SIMT_NO_TSAN void maybe_yield() {
  if (machine().config.schedule != Schedule::kRoundRobin) yield();
}

SIMT_NO_TSAN void push_engine_op(std::function<void()> run) {
  Machine& m = machine();
  EngineOp op{std::make_unique<std::function<void()>>(std::move(run)), &self()};
  hb_release(&op.issuer->async_proxy);
  if (m.config.async != AsyncTiming::kEarly) {
    NoTrack no_track;
    m.engine_ops.push_back(std::move(op));
    return;
  }
  run_engine_op(m, op);
  NoTrack no_track;
  op.run.reset();  // the engine has read it
  if (!m.error.empty()) throw Error(std::exchange(m.error, std::string()));
}

// ---- Shared memory ------------------------------------------------------------------------------------------------

// Shared addresses have 32 bits, and CuTe counts on the truncation: the offsets of its iterators over sub-byte elements
// are computed modulo 2^61.
SIMT_NO_TSAN uint32_t smem_offset(void const* p) {
  Cta const& cta = machine().cta;
  auto const offset = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(p) - reinterpret_cast<uintptr_t>(cta.smem));
  if (offset >= cta.smem_bytes) {
    fail("the pointer is outside of the block's %zu bytes of shared memory: offset %d", cta.smem_bytes,
         static_cast<int32_t>(offset));
  }
  return offset;
}

SIMT_NO_TSAN void check_smem(char const* what, uint32_t offset, uint32_t bytes, uint32_t alignment) {
  size_t const size = machine().cta.smem_bytes;
  if (offset % alignment != 0) fail("%s: the shared address %u is not a multiple of %u", what, offset, alignment);
  if (offset > size || bytes > size - offset) {
    fail("%s: %u bytes at shared address %u reach beyond the block's %zu", what, bytes, offset, size);
  }
}

// ---- One block ----------------------------------------------------------------------------------------------------

char* allocate_shared() {
  size_t const bytes = kMaxSharedBytes + 2 * kSharedGap;
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) fail("no memory for shared memory");
  return static_cast<char*>(p) + kSharedGap;  // pages are multiples of it
}

namespace {

std::string list_threads(std::vector<unsigned> const& threads) {
  std::string text;
  for (size_t i = 0; i < threads.size();) {
    size_t j = i;
    while (j + 1 < threads.size() && threads[j + 1] == threads[j] + 1) ++j;
    text += (i ? "," : "") + std::to_string(threads[i]) + (j > i ? "-" + std::to_string(threads[j]) : "");
    i = j + 1;
  }
  return text;
}

std::string describe_wait(Cta const& cta, Wait const& wait) {
  char text[200];
  if (!std::strcmp(wait.what, "mbarrier")) {
    for (Mbarrier const& barrier : cta.mbarriers) {
      if (barrier.offset != wait.a) continue;
      std::snprintf(
          text, sizeof(text),
          "wait for parity %u of the mbarrier at shared address %u (%u of %u arrivals and %lld bytes missing)", wait.b,
          wait.a, barrier.pending, barrier.expected, static_cast<long long>(barrier.tx));
      return text;
    }
  }
  if (!std::strncmp(wait.what, "bar.", 4) || !std::strcmp(wait.what, "__syncthreads")) {
    std::snprintf(text, sizeof(text), "wait at %s, barrier %u (%u of %u threads arrived)", wait.what, wait.a,
                  cta.bars[wait.a].arrived, wait.b);
    return text;
  }
  std::snprintf(text, sizeof(text), "wait at %s with mask 0x%08x in warp %u", wait.what, wait.a, wait.b);
  return text;
}

// Who waits where; threads that wait alike are listed together.
std::string describe_deadlock(Machine const& m) {
  std::vector<std::pair<std::string, std::vector<unsigned>>> groups;
  for (unsigned i = 0; i < m.cta.nthreads; ++i) {
    Thread const& thread = m.threads[i];
    std::string const where = thread.exited ? "exited" : thread.wait.what ? describe_wait(m.cta, thread.wait) : "run";
    size_t g = 0;
    while (g < groups.size() && groups[g].first != where) ++g;
    if (g == groups.size()) groups.push_back({where, {}});
    groups[g].second.push_back(i);
  }
  std::string text = "deadlock:";
  for (auto const& [where, threads] : groups) {
    text += (text.back() == ':' ? " threads " : "; threads ") + list_threads(threads) + " " + where;
  }
  return text;
}

void prepare_block(Machine& m, LaunchParams const& params, uint64_t block) {
  Cta& cta = m.cta;
  cta.gdim = params.grid;
  cta.bdim = params.block;
  cta.bid =
      uint3{static_cast<unsigned>(block % params.grid.x), static_cast<unsigned>(block / params.grid.x % params.grid.y),
            static_cast<unsigned>(block / params.grid.x / params.grid.y)};
  cta.smem = m.smem;
  cta.smem_bytes = params.smem_bytes;
  cta.nthreads = params.block.x * params.block.y * params.block.z;
  cta.nexited = 0;
  for (NamedBarrier& barrier : cta.bars) barrier = {};
  cta.mbarriers.clear();
  cta.async_proxy.reset();
  cta.in_flight.assign((params.smem_bytes + 15) / 16, 0);
  asan_unpoison(m.smem, params.smem_bytes);
  std::memset(m.smem, 0xFF, params.smem_bytes);
  asan_poison(m.smem - kSharedGap, kSharedGap);
  asan_poison(m.smem + params.smem_bytes, kMaxSharedBytes + kSharedGap - params.smem_bytes);

  m.body = params.body;
  m.context = params.context;
  m.error.clear();
  m.error_thread = -1;
  m.random.state = m.config.seed * 0x2545F4914F6CDD1Du + block;
  m.engine_ops.clear();
  m.cp_async_pending = 0;
  m.failed_polls = 0;
  m.finished_seen = m.progress->finished;
  m.polling_since = std::chrono::steady_clock::now();
  m.ready.assign(cta.nthreads, nullptr);
  m.ready_head = m.ready_count = 0;

  cta.warps.resize((cta.nthreads + 31) / 32);
  m.priority.clear();
  for (Warp& warp : cta.warps) {
    warp.busy = 0;
    warp.ready_first = warp.ready_last = nullptr;
    m.priority.push_back(&warp);
  }
  shuffle_priorities(m);
  while (m.threads.size() < cta.nthreads) {
    Fiber fiber;
    fiber_create(fiber, static_cast<unsigned>(m.threads.size()));
    static_cast<Fiber&>(m.threads.emplace_back()) = fiber;
  }
  for (unsigned i = 0; i < cta.nthreads; ++i) {
    Thread& thread = m.threads[i];
    thread.tid = uint3{i % params.block.x, i / params.block.x % params.block.y, i / params.block.x / params.block.y};
    thread.index = i;
    thread.lane = i % 32;
    thread.warp = &cta.warps[i / 32];
    thread.warp->lane[i % 32] = &thread;
    thread.cta = &cta;
    thread.exited = false;
    thread.cp_async.clear();
    thread.cp_async_head = 0;
    thread.cp_async_group = 0;
    thread.async_proxy.reset();
    fiber_start(thread, run_thread);
    push_ready(thread);
  }
}

}  // namespace

// Ends the threads of a block that has failed.
SIMT_NO_TSAN static void unwind_threads(Machine& m) {
  m.unwinding = true;
  for (unsigned i = 0; i < m.cta.nthreads; ++i) {
    if (m.threads[i].exited) continue;
    t_self = &m.threads[i];
    fiber_switch(m.main, m.threads[i]);
  }
  m.unwinding = false;
}

SIMT_NO_TSAN void run_block(Machine& m, LaunchParams const& params, uint64_t block) {
  {
    NoTrack no_track;
    prepare_block(m, params, block);
    hb_release(&m.cta);
    Thread* const first = pick_next(m);
    t_self = first;
    fiber_switch(m.main, *first);
    if (m.error.empty() && m.cta.nexited != m.cta.nthreads) record_error(m, -1, describe_deadlock(m).c_str());
    if (!m.error.empty()) unwind_threads(m);
    t_self = nullptr;
  }
  hb_acquire(&m);
  NoTrack no_track;
  if (m.error.empty() && m.cta.async_proxy) {
    try {
      m.cta.async_proxy->check_at_exit();
    } catch (std::exception const& error) {
      record_error(m, -1, error.what());
    }
  }
}

}  // namespace simt
