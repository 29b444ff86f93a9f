// AdamW (1711.05101, algorithm 2) in one pass: with g times the gradient's scale and bias-corrected m', v'
//   m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,  w = (1 - lr decay) w - lr m' / (sqrt(v') + eps).
// A thread a value. Grid: values / threads.
extern "C" __global__ void adamw_step(const float *gradient, float *weight, float *first, float *second, float beta1, float beta2,
                                      float rest1, float rest2, float correction1, float correction2, float eps, float keep,
                                      float rate, float gradient_scale, unsigned count) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const float g = gradient[i] * gradient_scale;
    const float m = fmaf(beta1, first[i], rest1 * g);
    const float v = fmaf(beta2, second[i], rest2 * g * g);
    first[i] = m;
    second[i] = v;
    weight[i] = fmaf(keep, weight[i], -(rate * (m * correction1 / (sqrtf(v * correction2) + eps))));
}
