// Sums over a warp and over a block in one fixed tree: lanes 16, 8, 4, 2, 1 apart, then the warps in order.
// Equal inputs give equal bits: no atomics, and no order that scheduling could change.
#pragma once

namespace cohort {

constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr unsigned WARP = 32;

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (unsigned apart = WARP / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(ALL_LANES, x, apart);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (unsigned apart = WARP / 2; apart > 0; apart /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, apart));
    return x;
}

// The sum of x over all threads of the block, in every thread. `slots` is shared memory, one value a warp.
__device__ __forceinline__ float block_sum(float x, float *slots) {
    x = warp_sum(x);
    __syncthreads(); // whoever still reads the slots of a sum before this one
    if (threadIdx.x % WARP == 0) slots[threadIdx.x / WARP] = x;
    __syncthreads();
    float total = 0.0f;
    for (unsigned warp = 0; warp < blockDim.x / WARP; warp++) total += slots[warp];
    return total;
}

} // namespace cohort
