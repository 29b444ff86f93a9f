// SwiGLU (2002.05202, eq. 5): h = silu(gate) * up, silu(g) = g s, s = 1 / (1 + e^-g).
// d_gate = dh up (s + g s (1 - s)),  d_up = dh g s.  A thread a value.

// Grid: values / threads.
extern "C" __global__ void swiglu_forward(const float *gate, const float *up, float *h, unsigned count) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    h[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

// Grid: values / threads.
extern "C" __global__ void swiglu_backward(const float *dh, const float *gate, const float *up, float *d_gate, float *d_up,
                                           unsigned count) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const float s = 1.0f / (1.0f + expf(-gate[i]));
    const float silu = gate[i] * s;
    d_gate[i] = dh[i] * up[i] * fmaf(silu, 1.0f - s, s);
    d_up[i] = dh[i] * silu;
}
