// setmaxnreg, clusters of one block, elect.sync, named barriers, polled mbarriers: what they do and what they refuse.
#include <cutlass/arch/barrier.h>
#include <cutlass/arch/reg_reconfig.h>
#include <cute/arch/cluster_sm90.hpp>
#include <cute/arch/copy_sm90_desc.hpp>

#include "self_test/check.h"

using namespace cute;
using cutlass::arch::NamedBarrier;

namespace {

template <class Body>
void run(unsigned num_threads, Body body) {
  simt::launch(1, num_threads, 1024, body);
}

int warp() { return static_cast<int>(threadIdx.x) / 32; }

void check_setmaxnreg() {
  using cutlass::arch::warpgroup_reg_alloc;
  using cutlass::arch::warpgroup_reg_dealloc;
  auto const producer_consumers = [](char*) { warp() < 4 ? warpgroup_reg_dealloc<24>() : warpgroup_reg_alloc<240>(); };
  run(384, producer_consumers);
  CHECK_ERROR("24 to 256 and a multiple of 8, got 100", run(128, [](char*) { warpgroup_reg_alloc<100>(); }));
  CHECK_ERROR("24 to 256 and a multiple of 8, got 16", run(128, [](char*) { warpgroup_reg_dealloc<16>(); }));
  CHECK_ERROR("24 to 256 and a multiple of 8, got 264", run(128, [](char*) { warpgroup_reg_alloc<264>(); }));
  CHECK_ERROR("warpgroups of 128 threads, it has 96", run(96, [](char*) { warpgroup_reg_alloc<128>(); }));
  CHECK_ERROR("of the same warpgroup",
              run(128, [](char*) { warp() == 2 ? warpgroup_reg_dealloc<24>() : warpgroup_reg_dealloc<40>(); }));
  CHECK_ERROR("warp 3 of the same warpgroup 0 times", run(128, [](char*) {
                if (warp() != 3) warpgroup_reg_dealloc<24>();
              }));
  CHECK_ERROR("of 65536",
              run(384, [](char*) { warp() < 4 ? warpgroup_reg_dealloc<40>() : warpgroup_reg_alloc<240>(); }));
  CHECK_ERROR("setmaxnreg.dec to 48 registers by a warp that has 40", run(128, [](char*) {
                warpgroup_reg_dealloc<40>();
                warpgroup_reg_dealloc<48>();
              }));
  CHECK_ERROR("setmaxnreg.inc to 120 registers by a warp that has 128", run(128, [](char*) {
                warpgroup_reg_alloc<128>();
                warpgroup_reg_alloc<120>();
              }));
  CHECK_ERROR("divergent", run(128, [](char*) {
                threadIdx.x % 32 < 16 ? warpgroup_reg_dealloc<40>() : static_cast<void>(elect_one_sync());
              }));
}

void check_cluster() {
  for (int phase = 0; phase < 3; ++phase) {
    int arrived = 0, seen_by_last = 0;
    run(96, [&](char*) {
      for (int i = 0; i < phase + 1; ++i) {
        atomicAdd(&arrived, 1);
        i % 2 ? cluster_arrive() : cluster_arrive_relaxed();
        cluster_wait();
        if (arrived != 96 * (i + 1)) atomicAdd(&seen_by_last, 1);
        cluster_sync();
      }
    });
    CHECK_EQUAL(seen_by_last, 0);
  }
  CHECK_ERROR("the thread has not arrived", run(32, [](char*) { cluster_wait(); }));
  CHECK_ERROR("only clusters of one block", run(32, [](char*) { set_block_rank(0, 1); }));
  CHECK_ERROR("only clusters of one block", run(32, [](char* smem) {
                auto* const barrier = reinterpret_cast<uint64_t*>(smem);
                cutlass::arch::ClusterBarrier::init(barrier, 1);
                cutlass::arch::ClusterBarrier::arrive(barrier, 1, 1);
              }));
  CHECK_ERROR("deadlock", run(64, [](char*) {
                if (warp() == 0) cluster_sync();
              }));
}

void check_elect() {
  self_test::for_each_configuration([] {
    int elected[2] = {}, others = 0;
    run(64, [&](char*) {
      for (int i = 0; i < 2; ++i) {
        if (!elect_one_sync()) continue;
        ++elected[warp()];
        if (threadIdx.x % 32 != 0) atomicAdd(&others, 1);
      }
      auto const [is_leader, leader] = elect_one_leader_sync();
      if (is_leader != (threadIdx.x % 32 == leader)) atomicAdd(&others, 1);
    });
    CHECK(elected[0] == 2 && elected[1] == 2 && others == 0);
  });
}

void check_named_barriers() {
  self_test::for_each_configuration([] {
    int produced = 0, early = 0;
    run(128, [&](char*) {
      if (warp() < 2) {
        atomicAdd(&produced, 1);
        NamedBarrier::arrive(128, 1);
      } else {
        NamedBarrier(128, 1).arrive_and_wait();
        if (produced != 64) atomicAdd(&early, 1);
      }
    });
    CHECK_EQUAL(early, 0);
  });
  CHECK_ERROR("must be a multiple of 32", run(64, [](char*) { NamedBarrier::sync(33, 0); }));
  // CUTLASS keeps barriers 0 to 7.
  CHECK_ERROR("the barrier must be 0 to 15, got 16", run(32, [](char*) { NamedBarrier::sync(32, 8); }));
}

// Threads that only poll must not keep what they wait for from happening, and must not hide that it never happens.
void check_polling() {
  using cutlass::arch::ClusterBarrier;
  auto const poll = [](bool arrive) {
    return [arrive](char* smem) {
      auto* const barrier = reinterpret_cast<uint64_t*>(smem);
      if (threadIdx.x == 0) ClusterBarrier::init(barrier, 32);
      __syncthreads();
      if (warp() == 1) {
        if (arrive) ClusterBarrier::arrive(barrier);
      } else {
        while (!ClusterBarrier::try_wait(barrier, 0)) {}
      }
    };
  };
  self_test::for_each_configuration([&] { run(96, poll(true)); });
  CHECK_ERROR("deadlock", run(96, poll(false)));
}

}  // namespace

int main() {
  check_setmaxnreg();
  check_cluster();
  check_elect();
  check_named_barriers();
  check_polling();
  return self_test::finish("sm90 synchronisation");
}
