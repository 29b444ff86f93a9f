// Kernels with one fault each, which the host must notice.
extern __shared__ __align__(16) float arena[];

// Reads what another warp wrote, without a barrier between.
extern "C" __global__ void fault_lost_barrier(float *out) {
    arena[threadIdx.x] = static_cast<float>(threadIdx.x);
    out[threadIdx.x] = arena[blockDim.x - 1 - threadIdx.x];
}

// Two blocks write one value.
extern "C" __global__ void fault_two_writers(float *out) {
    if (threadIdx.x == 0) out[0] = static_cast<float>(blockIdx.x);
}

extern "C" __global__ void fault_outside(float *out) {
    if (threadIdx.x == 0) out[blockDim.x] = 1.0f;
}

extern "C" __global__ void fault_shared_overrun(float *out) {
    arena[blockDim.x] = 1.0f;
    out[threadIdx.x] = 1.0f;
}

extern "C" __global__ void fault_left_at_barrier(float *out) {
    out[threadIdx.x] = 1.0f;
    if (threadIdx.x < 32) __syncthreads();
}
