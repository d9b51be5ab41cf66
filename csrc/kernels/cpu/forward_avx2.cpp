#include "cpu/attention_kernel.h"
#include "cpu/isa_avx2.h"

namespace sage::cpu {

ForwardKernel const kForwardAvx2[kKernelsPerIsa] = {
    kernel<Avx2<false>, 8, 8>("cpu_int8_int8_avx2"),
    kernel<Avx2<false>, 8, 16>("cpu_int8_int16_avx2"),
    kernel<Avx2<false>, 16, 16>("cpu_int16_int16_avx2"),
};

}  // namespace sage::cpu
