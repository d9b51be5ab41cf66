// cp.async: when copies land, what is there before, and what is reported of their misuse.
#include "simt/async_copy.h"

#include <cstring>

#include "self_test/check.h"
#include "simt/cuda_shim.h"
#include "simt/warp_matrix.h"

namespace {

alignas(16) unsigned char source[64];

// What one thread finds at its 16 bytes after two of three groups were waited for.
void check_groups() {
  unsigned char seen[3] = {};
  bool filled = true;
  simt::launch(1, 1, 64, [&](char* smem) {
    for (int i = 0; i < 3; ++i) {
      simt::cp_async(smem + 16 * i, source + 16 * i, 16, i == 1 ? 8 : 16);
      simt::cp_async_commit();
    }
    simt::cp_async_wait_group(1);
    for (int i = 0; i < 2; ++i) seen[i] = smem[16 * i];
    for (int i = 24; i < 32; ++i) filled = filled && smem[i] == 0;
    simt::cp_async_wait_group(0);
    seen[2] = smem[32];
  });
  CHECK(seen[0] == source[0] && seen[1] == source[16] && seen[2] == source[32]);
  CHECK(filled);
}

// The first byte before the wait.
unsigned char before_wait() {
  unsigned char seen = 0;
  simt::launch(1, 1, 64, [&](char* smem) {
    simt::cp_async(smem, source, 16, 16);
    simt::cp_async_commit();
#if !SIMT_ASAN
    seen = smem[0];
#else
    seen = __asan_address_is_poisoned(smem) ? 0xFF : smem[0];
#endif
    simt::cp_async_wait_all();
    CHECK(smem[0] == static_cast<char>(source[0]));
  });
  return seen;
}

void check_timing() {
  simt::Config const before = simt::configuration();
  simt::Config config = before;
  config.async = simt::AsyncTiming::kLate;
  simt::configure(config);
  CHECK_EQUAL(before_wait(), 0xFF);
  config.async = simt::AsyncTiming::kEarly;
  simt::configure(config);
  CHECK_EQUAL(before_wait(), source[0]);
  config.async = simt::AsyncTiming::kRandom;
  int landed = 0;
  for (config.seed = 0; config.seed < 64; ++config.seed) {
    simt::configure(config);
    landed += before_wait() == source[0];
  }
  CHECK(landed > 0 && landed < 64);

  // While its thread waits for something else, too.
  landed = 0;
  for (config.seed = 0; config.seed < 16; ++config.seed) {
    simt::configure(config);
    simt::launch(1, 2, 64, [&](char* smem) {
      if (threadIdx.x == 0) {
        for (int i = 0; i < 4; ++i) simt::cp_async(smem + 16 * i, source, 16, 16);
      }
      auto const in_flight = [] {
        int count = 0;
        for (int n : simt::machine().cta.in_flight) count += n;
        return count;
      };
      int const before = in_flight();
      for (int i = 0; i < 8; ++i) __syncthreads();
      if (threadIdx.x == 0) landed += before - in_flight();
      simt::cp_async_wait_all();
    });
  }
  CHECK(landed > 0);
  simt::configure(before);
}

void check_misuse() {
  CHECK_ERROR("the thread exits with 1 cp.async that it has not waited for", simt::launch(1, 1, 64, [](char* smem) {
                simt::cp_async(smem, source, 16, 16);
                simt::cp_async_commit();
                simt::cp_async_wait_group(1);
              }));
  CHECK_ERROR("cp.async: the shared address 8 is not a multiple of 16",
              simt::launch(1, 1, 64, [](char* smem) { simt::cp_async(smem + 8, source, 16, 16); }));
  CHECK_ERROR("is not a multiple of that",
              simt::launch(1, 1, 64, [](char* smem) { simt::cp_async(smem, source + 4, 8, 8); }));
  CHECK_ERROR("must be 4, 8 or 16 bytes, got 12",
              simt::launch(1, 1, 64, [](char* smem) { simt::cp_async(smem, source, 12, 12); }));
  CHECK_ERROR("17 source bytes", simt::launch(1, 1, 64, [](char* smem) { simt::cp_async(smem, source, 16, 17); }));
  CHECK_ERROR("reach beyond the block's 40",
              simt::launch(1, 1, 40, [](char* smem) { simt::cp_async(smem + 32, source, 16, 16); }));
  CHECK_ERROR("outside of the block's 64 bytes",
              simt::launch(1, 1, 64, [](char* smem) { simt::cp_async(smem - 16, source, 16, 16); }));
  CHECK_ERROR("ldmatrix: an asynchronous copy to shared address 16 was issued and not waited for",
              simt::launch(1, 32, 128, [](char* smem) {
                if (threadIdx.x == 1) simt::cp_async(smem + 16, source, 16, 16);
                __syncwarp();
                uint32_t words[1];
                simt::ldmatrix(1, false, smem + threadIdx.x % 8 * 16, words);
                simt::cp_async_wait_all();
              }));
}

}  // namespace

int main() {
  for (int i = 0; i < 64; ++i) source[i] = static_cast<unsigned char>(i + 1);
  self_test::for_each_configuration(check_groups);
  check_timing();
  check_misuse();
  return self_test::finish("cp_async");
}
