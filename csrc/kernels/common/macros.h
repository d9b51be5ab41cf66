#pragma once

#if defined(__CUDACC__)
#define SAGE_HD __host__ __device__ inline
#define SAGE_DEVICE __device__ __forceinline__
#define SAGE_UNROLL _Pragma("unroll")
#define SAGE_NO_UNROLL _Pragma("unroll 1")
#else
#define SAGE_HD inline
#define SAGE_DEVICE inline
#define SAGE_UNROLL
#define SAGE_NO_UNROLL
#endif
