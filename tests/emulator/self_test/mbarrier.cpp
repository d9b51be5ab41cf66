// The phases of mbarriers, and what is reported of their misuse.
#include "simt/mbarrier.h"

#include "self_test/check.h"
#include "simt/cuda_shim.h"

namespace {

// A ring of two stages: one producer thread, three consumer warps.
void check_ring(bool transactions) {
  constexpr int kStages = 2, kRounds = 20;
  struct Shared {
    uint64_t full[kStages], empty[kStages];
    int value[kStages];
  };
  int wrong = 0;
  simt::launch(1, 128, sizeof(Shared), [&](char* smem) {
    auto& shared = *reinterpret_cast<Shared*>(smem);
    if (threadIdx.x == 0) {
      for (int i = 0; i < kStages; ++i) {
        simt::mbar_init(&shared.full[i], 1);
        simt::mbar_init(&shared.empty[i], 3);
      }
    }
    __syncthreads();
    for (int i = 0; i < kRounds; ++i) {
      int const stage = i % kStages, phase = i / kStages % 2;
      if (threadIdx.x == 0) {
        simt::mbar_wait(&shared.empty[stage], phase ^ 1);  // passes at once in the first round
        if (transactions) {
          simt::mbar_expect_tx(&shared.full[stage], 4);
          simt::mbar_arrive(&shared.full[stage]);
          simt::push_engine_op([&shared, stage, i] {
            shared.value[stage] = i;
            simt::mbar_complete_tx(&shared.full[stage], 4);
          });
        } else {
          shared.value[stage] = i;
          simt::mbar_arrive(&shared.full[stage]);
        }
      } else if (threadIdx.x >= 32) {
        if (i % 3 == 0) {
          while (!simt::mbar_poll(&shared.full[stage], phase)) {}
        } else {
          simt::mbar_wait(&shared.full[stage], phase);
        }
        if (shared.value[stage] != i) atomicAdd(&wrong, 1);
        __syncwarp();
        if (threadIdx.x % 32 == 0) simt::mbar_arrive(&shared.empty[stage]);
      }
    }
  });
  CHECK_EQUAL(wrong, 0);
}

template <class Body>
void with_barrier(int threads, uint32_t count, Body body) {
  simt::launch(1, threads, 64, [&](char* smem) {
    if (threadIdx.x == 0) simt::mbar_init(smem + 8, count);
    __syncthreads();
    body(smem + 8);
  });
}

void check_misuse() {
  CHECK_ERROR("mbarrier.arrive: the mbarrier at shared address 8 is not initialised",
              simt::launch(1, 32, 64, [](char* smem) { simt::mbar_arrive(smem + 8); }));
  CHECK_ERROR("not initialised", with_barrier(32, 1, [](char* p) {
                simt::mbar_invalidate(p);
                simt::mbar_test(p, 0);
              }));
  CHECK_ERROR("too many arrivals at the mbarrier at shared address 8: 40 expected in a phase, 20 pending, 21 more",
              with_barrier(1, 40, [](char* p) {
                simt::mbar_arrive(p, 20);
                simt::mbar_arrive(p, 21);
              }));
  CHECK_ERROR("the shared address 4 is not a multiple of 8",
              simt::launch(1, 1, 64, [](char* smem) { simt::mbar_init(smem + 4, 1); }));
  CHECK_ERROR("outside of the block's 64 bytes",
              simt::launch(1, 1, 64, [](char* smem) { simt::mbar_init(smem + 64, 1); }));
  CHECK_ERROR("the count must be 1 to 1048575, got 0", with_barrier(1, 0, [](char*) {}));
  CHECK_ERROR("transaction bytes", with_barrier(1, 1, [](char* p) { simt::mbar_expect_tx(p, 1u << 20); }));
  CHECK_ERROR(
      "deadlock: threads 0-31 wait for parity 0 of the mbarrier at shared address 8 (2 of 33 arrivals and 16 "
      "bytes missing); threads 32 exited",
      with_barrier(33, 33, [](char* p) {
        if (threadIdx.x == 0) simt::mbar_expect_tx(p, 16);
        if (threadIdx.x != 32) {
          if (threadIdx.x != 31) simt::mbar_arrive(p);
          simt::mbar_wait(p, 0);
        }
      }));
}

}  // namespace

int main() {
  self_test::for_each_configuration([] {
    check_ring(false);
    check_ring(true);
  });
  check_misuse();
  return self_test::finish("mbarrier");
}
