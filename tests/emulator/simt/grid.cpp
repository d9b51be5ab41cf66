// A launch: blocks on OS threads, machines from a pool, counters.
#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <mutex>
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

// Runs blocks until there are none or one has failed.
void run_blocks(LaunchParams const& params, Config const& config, uint64_t num_blocks, std::atomic<uint64_t>& next,
                FirstError& error) {
  Machine* const machine = take_machine();
  machine->config = config;
  t_machine = machine;
  fiber_adopt_os_thread(machine->main);
  for (uint64_t block; (block = next.fetch_add(1)) < num_blocks;) {
    run_block(*machine, params, block);
    if (machine->error.empty()) continue;
    next = num_blocks;
    std::lock_guard const lock(error.mutex);
    if (block < error.block) {
      error.block = block;
      error.what = std::string("kernel ") + params.name + ", block " + std::to_string(block) +
                   (machine->error_thread < 0 ? "" : ", thread " + std::to_string(machine->error_thread)) + ": " +
                   machine->error;
    }
  }
  t_machine = nullptr;
  collect_stats();
  return_machine(machine);
}

}  // namespace

__thread Stats t_stats __attribute__((tls_model("initial-exec")));

Stats& Stats::operator+=(Stats const& other) {
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
  FirstError error;
  uint64_t const cores = SIMT_TSAN ? 1 : std::max(1u, std::thread::hardware_concurrency());
  std::vector<std::thread> helpers;
  for (uint64_t i = 1; i < std::min(cores, num_blocks); ++i) {
    helpers.emplace_back([&] { run_blocks(params, config, num_blocks, next, error); });
  }
  run_blocks(params, config, num_blocks, next, error);
  for (std::thread& helper : helpers) helper.join();
  if (!error.what.empty()) throw Error(error.what);
}

}  // namespace simt
