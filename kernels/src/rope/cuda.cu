// Rotary positions (2104.09864, eq. 34) in the rotate-half order: pair (i, i + d/2) of a head turns by
// position * theta^(-2i/d):  a' = a cos - b sin,  b' = b cos + a sin.  The way back turns by minus the angle.
//
// A thread a value. `turns` is [positions][2][half]: cosines, then sines. A position outside the table gives NaN.

namespace cohort {

// The value at `column` of a row, turned; `sign` -1 turns back.
__device__ __forceinline__ float turned(const float *row, unsigned column, unsigned half, const float *turns, unsigned position,
                                        unsigned positions, float sign) {
    if (position >= positions) return NAN;
    const unsigned i = column % (2 * half);
    const float *table = turns + static_cast<size_t>(position) * 2 * half;
    if (i < half) return fmaf(row[column], table[i], -(row[column + half] * (sign * table[half + i])));
    return fmaf(row[column], table[i - half], row[column - half] * (sign * table[i]));
}

} // namespace cohort

// y = x turned. Grid: values / threads.
extern "C" __global__ void rope_rotate(const float *x, const float *turns, const unsigned *at, float *y, float sign, unsigned rows,
                                       unsigned width, unsigned half, unsigned positions) {
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= static_cast<size_t>(rows) * width) return;
    const size_t row = i / width;
    y[i] = cohort::turned(x + row * width, static_cast<unsigned>(i % width), half, turns, at[row], positions, sign);
}

// Keys turned (`half` 0: as they are) and values to rows `to` of a store [2][stored][width]: keys, then values.
// A row outside the store is left out. Grid: values of the keys / threads.
extern "C" __global__ void rope_append(const float *k, const float *v, const float *turns, const unsigned *at, const unsigned *to,
                                       float *store, unsigned rows, unsigned width, unsigned half, unsigned positions,
                                       unsigned stored) {
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= static_cast<size_t>(rows) * width) return;
    const size_t row = i / width;
    const unsigned column = static_cast<unsigned>(i % width);
    if (to[row] >= stored) return;
    const size_t target = static_cast<size_t>(to[row]) * width + column;
    store[target] = half == 0 ? k[i] : cohort::turned(k + row * width, column, half, turns, at[row], positions, 1.0f);
    store[static_cast<size_t>(stored) * width + target] = v[i];
}
