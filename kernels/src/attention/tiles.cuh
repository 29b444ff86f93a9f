// What the three attention kernels share: the shape, where rows lie, tiles in shared memory.
#pragma once
#include "../cuda/reduce.cuh"

// Shared memory: the tiles of a block.
extern __shared__ __align__(16) float arena[];

namespace cohort {

constexpr unsigned WARPS = 4;     // of a block
constexpr unsigned KEYS = WARP;   // of a tile: a lane a key
constexpr unsigned SPAN_FIELDS = 4;

// Heads, and where keys lie.
struct Shape {
    unsigned heads, key_heads, width;   // query heads, key/value heads, values of a head
    unsigned rows, stored, entries;     // query rows of the batch, rows of the key/value source, entries of the row tables
    unsigned page;                      // consecutive rows that one entry of a row table stands for
    float scale;                        // 1 / sqrt(width)
};

// One sequence of a batch.
struct Span {
    unsigned start, past, fresh;        // first query row, positions before it, query rows
    const unsigned *pages;              // first row of each page of its keys
};

// A span that reaches outside the batch or its table has no rows: its results stay as they were.
__device__ __forceinline__ Span span_of(const Shape &shape, const unsigned *spans, const unsigned *tables, unsigned sequence) {
    const unsigned *field = spans + static_cast<size_t>(sequence) * SPAN_FIELDS;
    const size_t positions = static_cast<size_t>(field[1]) + field[2];
    const bool fits = static_cast<size_t>(field[0]) + field[2] <= shape.rows &&
                      field[3] + (positions + shape.page - 1) / shape.page <= shape.entries;
    return {field[0], field[1], fits ? field[2] : 0, tables + field[3]};
}

// The key/value row of a position.
__device__ __forceinline__ unsigned key_row(const Shape &shape, const Span &span, unsigned position) {
    return span.pages[position / shape.page] + position % shape.page;
}

// The distance of two rows of a tile: whole vectors of 4, and no two lanes of a quarter warp in one bank.
__device__ __forceinline__ unsigned stride_of(unsigned width) { return (width + 3) / 4 * 4 + 4; }

// Copies rows to a tile, zeros past their width and where `source(row)` is null. All threads of the block.
template <class Source>
__device__ __forceinline__ void stage(float *tile, unsigned rows, unsigned width, Source source) {
    const unsigned stride = stride_of(width);
    for (unsigned row = threadIdx.x / WARP; row < rows; row += WARPS) {
        const float *from = source(row);
        for (unsigned i = threadIdx.x % WARP; i < stride; i += WARP) {
            tile[row * stride + i] = from != nullptr && i < width ? from[i] : 0.0f;
        }
    }
}

// a . b of two rows of tiles.
__device__ __forceinline__ float dot4(const float4 &a, const float4 &b, float sum) {
    return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

__device__ __forceinline__ const float4 &vector_at(const float *tile, unsigned offset) {
    return *reinterpret_cast<const float4 *>(tile + offset);
}

// The query rows of one key/value head of a sequence: position by position, the heads of its group side by side.
struct Queries {
    unsigned group, first, count; // heads a key/value head; first of the tile; of the whole sequence

    __device__ __forceinline__ unsigned position(const Span &span, unsigned row) const {
        return span.past + (first + row) / group;
    }
    // The head's index among all rows and heads.
    __device__ __forceinline__ size_t index(const Shape &shape, const Span &span, unsigned key_head, unsigned row) const {
        const unsigned at = first + row;
        return static_cast<size_t>(span.start + at / group) * shape.heads + key_head * group + at % group;
    }
    __device__ __forceinline__ bool holds(unsigned row) const { return first + row < count; }
};

} // namespace cohort
