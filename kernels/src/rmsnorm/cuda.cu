// Root-mean-square norm (1910.07467, eq. 4): y = x * rstd * w, rstd = 1 / sqrt(mean(x^2) + eps).
// With g = dy * w and x_hat = x * rstd:  dx = rstd (g - x_hat mean(g x_hat)),  dw = sum over rows of dy x_hat.
//
// A block a row; sums over a row in a fixed tree, sums over rows in ascending order.
#include "../cuda/reduce.cuh"

// Shared memory: one value a warp.
extern __shared__ __align__(16) float arena[];

// y = norm(x). Grid: rows.
extern "C" __global__ void rmsnorm_forward(const float *x, const float *weight, float *y, float eps, unsigned width) {
    const size_t row = static_cast<size_t>(blockIdx.x) * width;
    float squares = 0.0f;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) squares = fmaf(x[row + i], x[row + i], squares);
    const float rstd = 1.0f / sqrtf(cohort::block_sum(squares, arena) / width + eps);
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) y[row + i] = x[row + i] * rstd * weight[i];
}

// sum = x + delta, y = norm(sum): the residual stream and its norm in one launch. Grid: rows.
extern "C" __global__ void rmsnorm_forward_add(const float *x, const float *delta, const float *weight, float *sum, float *y,
                                               float eps, unsigned width) {
    const size_t row = static_cast<size_t>(blockIdx.x) * width;
    float squares = 0.0f;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        const float value = x[row + i] + delta[row + i];
        sum[row + i] = value;
        squares = fmaf(value, value, squares);
    }
    const float rstd = 1.0f / sqrtf(cohort::block_sum(squares, arena) / width + eps);
    // A thread reads what it wrote itself.
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) y[row + i] = sum[row + i] * rstd * weight[i];
}

// dx, and rstd of each row for the weight's gradient. Grid: rows.
extern "C" __global__ void rmsnorm_backward(const float *dy, const float *x, const float *weight, float *dx, float *rstds,
                                            float eps, unsigned width) {
    const size_t row = static_cast<size_t>(blockIdx.x) * width;
    float squares = 0.0f, products = 0.0f;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        const float value = x[row + i];
        squares = fmaf(value, value, squares);
        products = fmaf(dy[row + i] * weight[i], value, products);
    }
    const float rstd = 1.0f / sqrtf(cohort::block_sum(squares, arena) / width + eps);
    const float mean = cohort::block_sum(products, arena) * rstd / width;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        dx[row + i] = rstd * (dy[row + i] * weight[i] - x[row + i] * rstd * mean);
    }
    if (threadIdx.x == 0) rstds[blockIdx.x] = rstd;
}

// parts[p] = sum of dy x_hat over rows p * rows_a_part .. Grid: columns / threads, parts.
extern "C" __global__ void rmsnorm_weight_parts(const float *dy, const float *x, const float *rstds, float *parts, unsigned rows,
                                                unsigned rows_a_part, unsigned width) {
    const unsigned column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    const unsigned first = blockIdx.y * rows_a_part;
    const unsigned end = min(first + rows_a_part, rows);
    float sum = 0.0f;
    for (unsigned row = first; row < end; row++) {
        const size_t at = static_cast<size_t>(row) * width + column;
        sum = fmaf(dy[at], x[at] * rstds[row], sum);
    }
    parts[static_cast<size_t>(blockIdx.y) * width + column] = sum;
}

// d_weight = sum of the parts in order. Grid: columns / threads.
extern "C" __global__ void rmsnorm_weight_sum(const float *parts, float *d_weight, unsigned count, unsigned width) {
    const unsigned column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    float sum = 0.0f;
    for (unsigned part = 0; part < count; part++) sum += parts[static_cast<size_t>(part) * width + column];
    d_weight[column] = sum;
}
