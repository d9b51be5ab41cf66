#include "cpu/attention_kernel.h"
#include "cpu/isa_portable.h"

namespace sage::cpu {

ForwardKernel const kForwardPortable[kKernelsPerIsa] = {
    kernel<Portable, 8, 8>("cpu_int8_int8_portable"),
    kernel<Portable, 8, 16>("cpu_int8_int16_portable"),
    kernel<Portable, 16, 16>("cpu_int16_int16_portable"),
};

}  // namespace sage::cpu
