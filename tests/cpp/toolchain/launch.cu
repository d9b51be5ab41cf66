// What the launches of two CompiledKernels return, one per line: "ok", or the code and the message. One kernel needs
// more shared memory than a kernel may have unasked.
#include <cstdio>

#include "arch/launch.h"

namespace {

template <int kBytes>
struct Fill {
  static constexpr int kThreads = 32, kMinBlocksPerSm = 1;
  struct Params {
    int num_blocks;
  };
  struct SharedStorage {
    char bytes[kBytes];
  };

  static int64_t num_blocks(Params const& p) { return p.num_blocks; }
  SAGE_DEVICE void operator()(Params const&, char* smem) const { smem[kBytes - 1 - threadIdx.x] = 1; }
};

template <int kBytes>
sage::Status launch(typename Fill<kBytes>::Params const& params, sage::Stream stream) {
  return sage::arch::launch<Fill<kBytes>>(kBytes > 48 * 1024 ? "fill_64k" : "fill_1k", params, stream);
}

template <int kBytes>
void report(char const* name) {
  sage::arch::CompiledKernel<typename Fill<kBytes>::Params> const kernel{name, kBytes, launch<kBytes>};
  for (int num_blocks : {0, 1, 1}) {
    sage::Status const status = kernel.launch({num_blocks}, nullptr);
    if (status.ok()) {
      std::printf("ok\n");
    } else {
      std::printf("%d %s\n", static_cast<int>(status.code), status.message);
    }
  }
}

}  // namespace

int main() {
  report<1024>("fill_1k");
  report<64 * 1024>("fill_64k");
  return 0;
}
