// A launch: blocks on OS threads, machines from a pool, counters.
#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "simt/machine.h"

namespace simt {
namespace {

constexpr unsigned kMaxThreads = 1024;  // per block

// Machines keep their stacks; they live as long as the process.
struct Pool {
  std::mutex mutex;
  std::vector<Machine*> idle;
  Stats stats;
};

Pool& pool() {
  static Pool* const pool = new Pool;
  return *pool;
}

Machine* take_machine() {
  {
    std::lock_guard const lock(pool().mutex);
    if (!pool().idle.empty()) {
      Machine* machine = pool().idle.back();
      pool().idle.pop_back();
      return machine;
    }
  }
  auto machine = std::make_unique<Machine>();
  machine->smem = allocate_shared();
  return machine.release();
}

void return_machine(Machine* machine) {
  std::lock_guard const lock(pool().mutex);
  pool().idle.push_back(machine);
}

struct FirstError {
  std::mutex mutex;
  uint64_t block = std::numeric_limits<uint64_t>::max();
  std::string what;
};

// A machine of the pool, as this OS thread's.
struct MachineLease {
  MachineLease(Config const& config, Progress& progress) : machine(take_machine()) {
    machine->config = config;
    machine->progress = &progress;
    fiber_adopt_os_thread(machine->main);
    t_machine = machine;
  }
  ~MachineLease() {
    t_machine = nullptr;
    collect_stats();
    return_machine(machine);
  }
  MachineLease(MachineLease const&) = delete;
  Machine* const machine;
};

// Runs blocks until there are none or one has failed. Does not throw, as it is what an OS thread runs.
void run_blocks(LaunchParams const& params, Config const& config, uint64_t num_blocks, std::atomic<uint64_t>& next,
                Progress& progress, FirstError& error) {
  uint64_t block = 0;
  auto const record = [&](std::string const& what) {
    next = num_blocks;
    std::lock_guard const lock(error.mutex);
    if (block >= error.block) return;
    error.block = block;
    error.what = std::string("kernel ") + params.name + ", block " + std::to_string(block) + what;
  };
  try {
    MachineLease const lease(config, progress);
    Machine& machine = *lease.machine;
    while ((block = next.fetch_add(1)) < num_blocks) {
      ++progress.running;
      run_block(machine, params, block);
      ++progress.finished;
      --progress.running;
      if (machine.error.empty()) continue;
      std::string const thread = machine.error_thread < 0 ? "" : ", thread " + std::to_string(machine.error_thread);
      record(thread + ": " + machine.error);
    }
  } catch (std::exception const& failure) {  // no memory for a block
    record(std::string(": ") + failure.what());
  }
}

}  // namespace

__thread Stats t_stats __attribute__((tls_model("initial-exec")));

Stats& Stats::operator+=(Stats const& other) {
  launches += other.launches;
  switches += other.switches;
  collectives += other.collectives;
  mma += other.mma;
  ldsm_phases += other.ldsm_phases;
  ldsm_conflicts += other.ldsm_conflicts;
  stsm_phases += other.stsm_phases;
  stsm_conflicts += other.stsm_conflicts;
  return *this;
}

Stats stats() {
  std::lock_guard const lock(pool().mutex);
  return pool().stats;
}

void reset_stats() {
  std::lock_guard const lock(pool().mutex);
  pool().stats = {};
}

void collect_stats() {
  std::lock_guard const lock(pool().mutex);
  pool().stats += t_stats;
  t_stats = {};
}

void launch(LaunchParams const& params) {
  uint64_t const num_threads = uint64_t{params.block.x} * params.block.y * params.block.z;
  uint64_t const num_blocks = uint64_t{params.grid.x} * params.grid.y * params.grid.z;
  if (num_threads == 0 || num_threads > kMaxThreads) {
    fail("kernel %s: a block must have at least 1 and at most %u threads, got %llu", params.name, kMaxThreads,
         static_cast<unsigned long long>(num_threads));
  }
  if (params.smem_bytes > kMaxSharedBytes) {
    fail("kernel %s: a block must have at most %zu bytes of shared memory, got %zu", params.name, kMaxSharedBytes,
         params.smem_bytes);
  }
  if (t_machine) fail("kernel %s is launched from inside a kernel", params.name);
  Config const config = configuration();
  std::atomic<uint64_t> next{0};
  Progress progress;
  FirstError error;
  uint64_t const cores = SIMT_TSAN ? 1 : std::max(1u, std::thread::hardware_concurrency());
  std::vector<std::thread> helpers;
  for (uint64_t i = 1; i < std::min(cores, num_blocks); ++i) {
    try {
      helpers.emplace_back([&] { run_blocks(params, config, num_blocks, next, progress, error); });
    } catch (std::system_error const&) {
      break;  // the system has no more threads; those that there are do the work
    }
  }
  ++t_stats.launches;
  run_blocks(params, config, num_blocks, next, progress, error);
  for (std::thread& helper : helpers) helper.join();
  if (!error.what.empty()) throw Error(error.what);
}

}  // namespace simt
