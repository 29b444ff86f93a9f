// Sum of the rows of [parts, width] in a binary tree, neighbours first, an odd last one moving up: in the first row.
// A thread a column. Grid: columns / threads.
extern "C" __global__ void tree_sum(float *rows, unsigned parts, unsigned width) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= width) return;
    for (unsigned step = 1; step < parts; step *= 2)
        for (unsigned left = 0; left + step < parts; left += 2 * step)
            rows[(size_t)left * width + i] += rows[(size_t)(left + step) * width + i];
}
