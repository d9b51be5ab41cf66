#include "cpu/attention_kernel.h"
#include "cpu/isa_avx512_vnni.h"

namespace sage::cpu {

ForwardKernel const kForwardAvx512Vnni[kKernelsPerIsa] = {
    kernel<Avx512Vnni, 8, 8>("cpu_int8_int8_avx512_vnni"),
    kernel<Avx512Vnni, 8, 16>("cpu_int8_int16_avx512_vnni"),
    kernel<Avx512Vnni, 16, 16>("cpu_int16_int16_avx512_vnni"),
};

}  // namespace sage::cpu
