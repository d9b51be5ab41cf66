// The configuration, the schedules and the launch: what they reach, that they repeat, and that errors leave nothing
// behind.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "arch/launch.h"
#include "self_test/check.h"
#include "simt/cuda_shim.h"

namespace {

// The order in which threads get to run.
std::vector<int> order(char const* schedule) {
  simt::configure_schedule(schedule);
  std::vector<int> order;
  simt::launch(1, 64, 0, [&](char*) {
    for (int i = 0; i < 3; ++i) {
      {
        simt::NoTrack no_track;
        order.push_back(threadIdx.x);
      }
      simt::yield();
    }
  });
  return order;
}

void check_schedules() {
  auto const round_robin = order("round_robin");
  for (int i = 0; i < 3 * 64; ++i) CHECK_EQUAL(round_robin[i], i % 64);
  for (char const* name : {"random", "priority"}) {
    std::string const name_of[] = {name + std::string(":1"), name + std::string(":2")};
    auto const first = order(name_of[0].c_str()), second = order(name_of[1].c_str());
    CHECK(first == order(name_of[0].c_str()));
    CHECK(first != second || name_of[0][0] == 'p');  // two warps have two orders
    CHECK(first != round_robin);
  }
  simt::configure_schedule("round_robin");
}

#if !SIMT_TSAN  // which would report it, as it should
// Writes a buffer, reads it, and goes on to write the next without a barrier: a reader may find a later value.
bool race_shows(char const* schedule) {
  simt::configure_schedule(schedule);
  int wrong = 0;
  simt::launch(1, 128, 128 * sizeof(int), [&](char* smem) {
    int* const values = reinterpret_cast<int*>(smem);
    for (int i = 0; i < 4; ++i) {
      values[threadIdx.x] = i;
      __syncthreads();
      if (values[(threadIdx.x + 32) % 128] != i) atomicAdd(&wrong, 1);
      for (int k = 0; k < 4; ++k) __syncwarp();  // in lock-step, time enough for every reader
    }
  });
  simt::configure_schedule("round_robin");
  return wrong != 0;
}

void check_race() {
  CHECK(!race_shows("round_robin"));
  int shown = 0;
  for (int seed = 0; seed < 10; ++seed) shown += race_shows(("priority:" + std::to_string(seed)).c_str());
  CHECK(shown >= 8);
}
#endif

void check_configuration() {
  CHECK_ERROR("schedule must be round_robin, random:SEED or priority:SEED with a number as SEED, got 'random'",
              simt::configure_schedule("random"));
  CHECK_ERROR("got 'priority:x'", simt::configure_schedule("priority:x"));
  CHECK_ERROR("async must be late, early or random, got 'soon'", simt::configure_async("soon"));
  CHECK_ERROR("accumulate must be exact or reduced, got ''", simt::configure_accumulate(""));
  simt::configure_schedule("priority:7");
  CHECK(simt::configuration().schedule == simt::Schedule::kPriority && simt::configuration().seed == 7);
  simt::configure({});
}

struct SumKernel {
  static constexpr int kThreads = 64;
  struct Params {
    int* sums;
    int fail_in_block;
  };
  struct SharedStorage {
    int values[kThreads];
  };
  void operator()(Params const& params, char* smem) const {
    auto& shared = *reinterpret_cast<SharedStorage*>(smem);
    unsigned const thread = threadIdx.x, block = blockIdx.x;
    if (shared.values[thread] != -1 || reinterpret_cast<uintptr_t>(smem) % 1024 != 0) simt::fail("not fresh");
    shared.values[thread] = static_cast<int>(thread + block);
    __syncthreads();
    if (static_cast<int>(block) >= params.fail_in_block) __trap();
    if (thread == 0) {
      for (int value : shared.values) params.sums[block] += value;
    }
  }
};

void check_launch() {
  constexpr int kBlocks = 50;
  for (int repeat = 0; repeat < 3; ++repeat) {
    std::vector<int> sums(kBlocks);
    simt::reset_stats();
    sage::Status status = sage::arch::enqueue<SumKernel>("sum", {sums.data(), kBlocks}, kBlocks, nullptr);
    CHECK(status.ok());
    CHECK(simt::stats().switches >= uint64_t{kBlocks} * SumKernel::kThreads);
    for (int block = 0; block < kBlocks; ++block) CHECK_EQUAL(sums[block], 63 * 32 + 64 * block);
    status = sage::arch::enqueue<SumKernel>("sum", {sums.data(), 20}, kBlocks, nullptr);
    CHECK(status.code == sage::StatusCode::kRuntime);
    CHECK(!std::strncmp(status.message, "kernel sum, block 2", 19) && std::strstr(status.message, ": __trap"));
  }
  sage::Status const status = sage::arch::enqueue<SumKernel>("sum", {nullptr, 0}, 0, nullptr);
  CHECK(std::strstr(status.message, "kernel sum: a grid must have 1 to 2^31 - 1 blocks, got 0"));
  CHECK_ERROR("at least 1 and at most 1024 threads", simt::launch(1, 1025, 0, [](char*) {}));
  CHECK_ERROR("at most 232448 bytes of shared memory", simt::launch(1, 32, 240 << 10, [](char*) {}));
  CHECK_ERROR("from inside a kernel", simt::launch(1, 1, 0, [](char*) { simt::launch(1, 1, 0, [](char*) {}); }));
  // Indices of grids and blocks of three dimensions.
  int wrong = 0;
  simt::launch(dim3(2, 3, 4), dim3(4, 2, 2), 0, [&](char*) {
    if (gridDim.y != 3 || blockDim.z != 2 || blockIdx.z > 3 || threadIdx.y > 1) atomicAdd(&wrong, 1);
  });
  CHECK_EQUAL(wrong, 0);
}

// Objects of threads that wait, or have not begun, when another one fails.
void check_unwinding() {
  static std::atomic<int> alive;
  struct Counted {
    Counted() { ++alive; }
    ~Counted() { --alive; }
  };
  for (int round = 0; round < 2; ++round) {
    CHECK_ERROR("thread 70: __trap", simt::launch(1, 128, 64, [](char*) {
                  Counted const counted;
                  if (threadIdx.x == 70) __trap();
                  threadIdx.x % 64 < 32 ? __syncthreads() : __syncwarp();
                }));
    CHECK_EQUAL(alive.load(), 0);
    CHECK_ERROR("deadlock", simt::launch(1, 64, 64, [](char*) {
                  Counted const counted;
                  if (threadIdx.x < 63) __syncthreads();
                }));
    CHECK_EQUAL(alive.load(), 0);
  }
}

// From several OS threads at once, every third of them with an error.
void check_concurrent_launches() {
  constexpr int kCallers = 6, kBlocks = 7, kRounds = 20;
  std::atomic<int> wrong = 0;
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([caller, &wrong] {
      int const fail_in_block = caller % 3 == 0 ? 5 : kBlocks;
      for (int round = 0; round < kRounds; ++round) {
        std::vector<int> sums(kBlocks);
        sage::Status const status =
            sage::arch::enqueue<SumKernel>("sum", {sums.data(), fail_in_block}, kBlocks, nullptr);
        wrong += status.ok() != (fail_in_block == kBlocks);
        for (int block = 0; block < fail_in_block; ++block) wrong += status.ok() && sums[block] != 63 * 32 + 64 * block;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK_EQUAL(wrong.load(), 0);
}

}  // namespace

int main(int count, char** arguments) {
  if (count == 2 && !std::strcmp(arguments[1], "--configuration")) {  // what the environment says; see test_emulator.py
    std::string const error = self_test::error_of([] { simt::launch(1, 1, 0, [](char*) {}); });
    std::printf("%s\n", error.empty() ? std::to_string(simt::configuration().seed).c_str() : error.c_str());
    return error.empty() ? 0 : 1;
  }
  check_configuration();
  check_schedules();
#if !SIMT_TSAN
  check_race();
#endif
  check_launch();
  check_unwinding();
  check_concurrent_launches();
  return self_test::finish("schedules");
}
