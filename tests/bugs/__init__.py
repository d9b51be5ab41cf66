"""Bugs that the tests must catch, by name."""

from . import cpu, cuda, cuda_fp8, cuda_nvfp4_quantizers, cuda_sm90, cuda_sm120_fp4, cuda_smoothing

CPU_BUGS = cpu.CPU_BUGS
CUDA_BUGS = (
    cuda.CUDA_BUGS
    | cuda_fp8.CUDA_BUGS
    | cuda_nvfp4_quantizers.CUDA_BUGS
    | cuda_sm90.CUDA_BUGS
    | cuda_sm120_fp4.CUDA_BUGS
    | cuda_smoothing.CUDA_BUGS
)
