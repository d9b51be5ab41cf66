"""Bugs that the tests must catch, by name."""

from . import cpu, cuda, cuda_fp8, cuda_sm90, cuda_smoothing

CPU_BUGS = cpu.CPU_BUGS
CUDA_BUGS = cuda.CUDA_BUGS | cuda_fp8.CUDA_BUGS | cuda_sm90.CUDA_BUGS | cuda_smoothing.CUDA_BUGS
