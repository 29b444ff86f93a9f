// What the kernels use of CUDA C++, for the host's compiler: the built-in variables, barriers, shuffles.
// Barriers and shuffles hand over to the block's other threads (fibers.cpp).
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ thread_local
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)

struct Index3 {
    unsigned x, y, z;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

extern thread_local Index3 threadIdx, blockIdx, blockDim, gridDim;

void __syncthreads();
void __syncwarp(unsigned mask = 0xffffffffu);
float __shfl_xor_sync(unsigned mask, float value, unsigned apart);

static inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
