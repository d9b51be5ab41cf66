#include "cpu/attention_kernel.h"
#include "cpu/isa_avx2.h"

namespace sage::cpu {

ForwardKernel const kForwardAvxVnni[kKernelsPerIsa] = {
    kernel<Avx2<true>, 8, 8>("cpu_int8_int8_avx_vnni"),
    kernel<Avx2<true>, 8, 16>("cpu_int8_int16_avx_vnni"),
    kernel<Avx2<true>, 16, 16>("cpu_int16_int16_avx_vnni"),
};

}  // namespace sage::cpu
