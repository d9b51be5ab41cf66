// The accumulators change between two wgmma, and nothing waits for the first: ptxas then waits for each of them, and
// says so without a warning.
#include <cstdint>

__global__ void serialized_wgmma(int n, uint64_t a, uint64_t b, float* out) {
  float d[4] = {};
  for (int i = 0; i < n; ++i) {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    for (int j = 0; j < 2; ++j) {
      asm volatile("wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {%0, %1, %2, %3}, %4, %5, 1, 1, 1;"
                   : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                   : "l"(a), "l"(b));
      if (IS_SERIALIZED) d[0] += 1.f;
    }
    asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
  }
  for (int i = 0; i < 4; ++i) out[4 * threadIdx.x + i] = d[i];
}
