// Shuffles, votes, warp and block barriers, and what is reported of their misuse.
#include "simt/cuda_shim.h"

#include <vector>

#include "self_test/check.h"

namespace {

void check_shuffles() {
  constexpr int kThreads = 64;
  std::vector<int> wrong(kThreads);
  simt::launch(1, kThreads, 0, [&](char*) {
    int const thread = threadIdx.x, lane = thread % 32, warp = thread - lane;
    auto const expect = [&](bool ok) { wrong[thread] += !ok; };
    expect(__shfl_xor_sync(simt::kFullWarp, thread, 5) == warp + (lane ^ 5));
    expect(__shfl_sync(simt::kFullWarp, thread, 7) == warp + 7);
    expect(__shfl_sync(simt::kFullWarp, thread, 9, 8) == warp + (lane & ~7) + 1);
    expect(__shfl_down_sync(simt::kFullWarp, thread, 3) == (lane + 3 < 32 ? thread + 3 : thread));
    expect(__shfl_up_sync(simt::kFullWarp, thread, 3, 16) == (lane % 16 >= 3 ? thread - 3 : thread));
    expect(__shfl_xor_sync(simt::kFullWarp, thread * 0.5, 1) == (thread ^ 1) * 0.5);
    expect(__ballot_sync(simt::kFullWarp, lane % 3 == 0) == 0x49249249u);
    expect(__any_sync(simt::kFullWarp, lane == 31) && !__any_sync(simt::kFullWarp, 0));
    expect(!__all_sync(simt::kFullWarp, lane < 31) && __all_sync(simt::kFullWarp, 1));
    // Halves of a warp, each on its own and as often as it likes.
    unsigned const half = lane < 16 ? 0xffffu : 0xffff0000u;
    for (int i = 0; i <= lane / 16; ++i) expect(__shfl_xor_sync(half, thread, 15) == (thread ^ 15));
    expect(__all_sync(half, lane < 16) == (lane < 16));
    __syncwarp();
  });
  for (int count : wrong) CHECK_EQUAL(count, 0);
}

// A value goes round the block through shared memory.
void check_barriers() {
  constexpr int kThreads = 96;
  int sum = 0;
  simt::launch(1, kThreads, kThreads * sizeof(int), [&](char* smem) {
    int* const values = reinterpret_cast<int*>(smem);
    int const thread = threadIdx.x;
    values[thread] = thread;
    for (int i = 0; i < 10; ++i) {
      __syncthreads();
      int const next = values[(thread + 1) % kThreads];
      __syncthreads();
      values[thread] = next;
    }
    if (values[thread] != (thread + 10) % kThreads) atomicAdd(&sum, 1);
  });
  CHECK_EQUAL(sum, 0);

  // Warp 0 produces, warps 1 and 2 consume: full and empty as named barriers.
  int wrong = 0;
  simt::launch(1, kThreads, sizeof(int), [&](char* smem) {
    int* const slot = reinterpret_cast<int*>(smem);
    for (int i = 0; i < 5; ++i) {
      if (threadIdx.x < 32) {
        if (i > 0) simt::bar_sync(2, 96);
        if (threadIdx.x == 0) *slot = i;
        simt::bar_arrive(1, 96);
      } else {
        simt::bar_sync(1, 96);
        if (*slot != i) atomicAdd(&wrong, 1);
        if (i < 4) simt::bar_arrive(2, 96);
      }
    }
  });
  CHECK_EQUAL(wrong, 0);
}

void check_misuse() {
  CHECK_ERROR("divergent warp: lane 1 is at __shfl_sync while lane 0 waits at __any_sync",
              simt::launch(1, 32, 0, [](char*) {
                if (threadIdx.x == 0)
                  __any_sync(simt::kFullWarp, 1);
                else
                  __shfl_sync(simt::kFullWarp, 1, 0);
              }));
  CHECK_ERROR("the mask 0x00000001 does not contain lane 1", simt::launch(1, 32, 0, [](char*) { __syncwarp(1); }));
  CHECK_ERROR("lane 0 reads lane 5, which does not take part", simt::launch(1, 32, 0, [](char*) {
                if (threadIdx.x < 2) __shfl_sync(3, 1, 5);
              }));
  CHECK_ERROR("deadlock: threads 0-15 wait at __syncwarp with mask 0xffffffff in warp 0; threads 16-31 exited",
              simt::launch(1, 32, 0, [](char*) {
                if (threadIdx.x < 16) __syncwarp();
              }));
  CHECK_ERROR(
      "deadlock: threads 0-31 wait at __syncthreads, barrier 0 (32 of 64 threads arrived); "
      "threads 32-63 wait at bar.sync, barrier 3 (32 of 64 threads arrived)",
      simt::launch(1, 64, 0, [](char*) {
        if (threadIdx.x < 32)
          __syncthreads();
        else
          simt::bar_sync(3, 64);
      }));
  CHECK_ERROR("barrier 3 is used for 64 threads, and by others for 96",
              simt::launch(1, 96, 0, [](char*) { simt::bar_sync(3, threadIdx.x < 64 ? 96 : 64); }));
  CHECK_ERROR("must be a multiple of 32", simt::launch(1, 64, 0, [](char*) { simt::bar_sync(1, 48); }));
  CHECK_ERROR("must be 0 to 15, got 16", simt::launch(1, 64, 0, [](char*) { simt::bar_sync(16, 64); }));
  CHECK_ERROR("kernel kernel, block 2, thread 33: __trap", simt::launch(4, 64, 0, [](char*) {
                if (blockIdx.x == 2 && threadIdx.x == 33) __trap();
              }));
  CHECK_ERROR("all threads that can run poll", simt::launch(1, 32, 0, [](char*) {
                for (;;) __nanosleep(1);
              }));
  auto const lock = [](int num_blocks, bool give_back) {
    unsigned lock = 0, sum = 0;
    simt::launch(num_blocks, 64, 0, [&](char*) {
      if (threadIdx.x == 0) {
        while (atomicExch(&lock, 1u)) __nanosleep(100);
        for (int i = 0; i < 100; ++i) {
          unsigned const before = sum;
          __syncwarp(1);
          sum = before + 1;
        }
        if (give_back) atomicExch(&lock, 0u);
      }
      __syncthreads();
    });
    return sum;
  };
  CHECK_EQUAL(lock(20, true), 2000u);
  CHECK_ERROR("all threads that can run poll; this one at __nanosleep", lock(2, false));
  // Nothing of all that is left behind.
  check_shuffles();
}

}  // namespace

int main() {
  self_test::for_each_configuration([] {
    check_shuffles();
    check_barriers();
  });
  check_misuse();
  return self_test::finish("sync");
}
