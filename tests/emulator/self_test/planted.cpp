// Faults that only a sanitizer sees, one per argument; tests/test_emulator.py expects its report. Without an argument
// the same program without a fault. Not for a build without sanitizers, which would pass.
#include <cstring>

#include "self_test/check.h"
#include "simt/async_copy.h"
#include "simt/cuda_shim.h"

namespace {

alignas(16) char source[128 * 16];

// Threads read what the next warp has copied to shared memory by cp.async, time and again.
void run(char const* fault) {
  auto const plant = [fault](char const* name) { return !std::strcmp(fault, name); };
  if (plant("after_error")) {  // and the race of no_second_barrier: what waited at the error must not hide it
    CHECK_ERROR("__trap", simt::launch(1, 128, 16, [](char*) {
                  if (threadIdx.x == 127) __trap();
                  __syncthreads();
                }));
  }
  int wrong = 0;
  simt::launch(1, 128, sizeof(source), [&](char* smem) {
    unsigned const thread = threadIdx.x, next = (thread + 32) % 128;
    for (int i = 0; i < 4; ++i) {
      simt::cp_async(smem + thread * 16, source + thread * 16, 16, 16);
      simt::cp_async_commit();
      if (!plant("no_wait")) simt::cp_async_wait_all();
      if (!plant("no_barrier")) __syncthreads();
      int value;
      std::memcpy(&value, smem + next * 16, 4);
      if (value != static_cast<int>(next)) atomicAdd(&wrong, 1);
      if (!plant("no_second_barrier") && !plant("after_error"))
        __syncthreads();  // nobody still reads what the next round overwrites
      if (plant("no_wait")) simt::cp_async_wait_all();
    }
    if (plant("out_of_range") && thread == 77) smem[sizeof(source)] = 1;
    if (plant("below") && thread == 77) smem[-1] = 1;
    if (plant("misaligned") && thread == 77) *reinterpret_cast<int volatile*>(smem + 2) = 1;
    if (plant("global") && thread == 77) simt::cp_async(smem, source + sizeof(source), 16, 16);
    if (plant("global") && thread == 77) simt::cp_async_wait_all();
    if (plant("no_syncwarp") && thread < 32) {
      smem[thread] = 1;
      if (smem[31 - thread] == 2) atomicAdd(&wrong, 1);
    }
  });
  CHECK_EQUAL(wrong, 0);
}

}  // namespace

int main(int count, char** arguments) {
  for (int i = 0; i < 128; ++i) std::memcpy(source + 16 * i, &i, 4);
  run(count > 1 ? arguments[1] : "");
  return self_test::finish("planted");
}
