// Which instruction sets this build has and this machine runs. Compiled with baseline flags.
#include "cpu/forward.h"

#include <initializer_list>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace sage {
namespace cpu {

ForwardKernel const* forward_kernels(CpuIsa isa) {
  switch (isa) {
#if SAGE_HAS_CPU && defined(__x86_64__)
    case CpuIsa::kAvx512Vnni: return kForwardAvx512Vnni;
    case CpuIsa::kAvxVnni: return kForwardAvxVnni;
    case CpuIsa::kAvx2: return kForwardAvx2;
#endif
#if SAGE_HAS_CPU
    case CpuIsa::kPortable: return kForwardPortable;
#endif
    default: return nullptr;
  }
}

char const* isa_name(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kAuto: return "auto";
    case CpuIsa::kAvx512Vnni: return "avx512_vnni";
    case CpuIsa::kAvxVnni: return "avx_vnni";
    case CpuIsa::kAvx2: return "avx2";
    case CpuIsa::kPortable: return "portable";
  }
  return "unknown";
}

#if defined(__x86_64__)
// CPUID leaf 7, sub-leaf 1, EAX bit 4. GCC 12's __builtin_cpu_supports does not know this one.
static bool has_avx_vnni() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
}

// CPUID leaf 1, ECX bit 29.
static bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx >> 29 & 1);
}
#endif

}  // namespace cpu

bool cpu_isa_available(CpuIsa isa) {
  if (isa != CpuIsa::kAuto && !cpu::forward_kernels(isa)) return false;
#if defined(__x86_64__)
  // __builtin_cpu_supports also checks that the operating system saves the wide registers.
  bool const avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && cpu::has_f16c();
  switch (isa) {
    case CpuIsa::kAvx512Vnni:
      return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vnni");
    case CpuIsa::kAvxVnni: return avx2 && cpu::has_avx_vnni();
    case CpuIsa::kAvx2: return avx2;
    default: break;
  }
#endif
  return isa == CpuIsa::kAuto || isa == CpuIsa::kPortable;
}

CpuIsa best_cpu_isa() {
  for (CpuIsa isa : {CpuIsa::kAvx512Vnni, CpuIsa::kAvxVnni, CpuIsa::kAvx2})
    if (cpu_isa_available(isa)) return isa;
  return CpuIsa::kPortable;
}

}  // namespace sage
