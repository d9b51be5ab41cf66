#pragma once

#if defined(__CUDACC__)
#define SAGE_HD __host__ __device__ inline
#else
#define SAGE_HD inline
#endif
