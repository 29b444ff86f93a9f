// Causal grouped-query attention by tiles with an online softmax (FlashAttention-2, 2307.08691, algorithm 1): scores never
// leave the chip. Sequences are packed without padding; keys and values are found through a table of pages, so that one
// kernel serves training, prompts and decoding. Decoding splits the keys every SPLIT positions and joins the parts in order
// (Flash-Decoding): where a sequence is cut depends on positions alone.
//
// A block is 4 warps. A query row of a tile is a (position, head of the group) pair, so that a key is loaded once for all
// heads that share it. For scores a lane holds a key; for values a lane holds every 32nd column.
//   out = sum_t p_t v_t,  p_t = e^(s_t - lse),  s_t = scale q . k_t,  lse = ln sum_t e^(s_t)
#pragma once
#include "tiles.cuh"

namespace cohort {

constexpr unsigned FORWARD_ROWS = 32; // query rows of a tile
constexpr unsigned SPLIT = 256;       // keys of a part when decoding

template <unsigned COLUMNS>
__device__ __forceinline__ void forward(const float *q, const float *keys, const float *values, const unsigned *spans,
                                        const unsigned *tables, float *out, float *lse, Shape shape, unsigned splits) {
    constexpr unsigned ROWS = FORWARD_ROWS / WARPS; // of a warp
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, key_head = blockIdx.y;
    const unsigned split = blockIdx.z % splits;
    const Span span = span_of(shape, spans, tables, blockIdx.z / splits);
    const unsigned group = shape.heads / shape.key_heads;
    const Queries queries = {group, blockIdx.x * FORWARD_ROWS, span.fresh * group};
    if (queries.first >= queries.count) return;
    const unsigned last = min(queries.first + FORWARD_ROWS, queries.count) - 1;
    const unsigned seen = span.past + last / group + 1;
    const unsigned begin = splits == 1 ? 0 : split * SPLIT, end = splits == 1 ? seen : min(seen, begin + SPLIT);
    if (begin >= end) return;

    const unsigned stride = stride_of(shape.width), quads = stride / 4 - 1;
    float *query_tile = arena;                            // [FORWARD_ROWS][stride]
    float *key_tile = query_tile + FORWARD_ROWS * stride; // [KEYS][stride], keys then values
    float *weights = key_tile + KEYS * stride;            // [FORWARD_ROWS][KEYS]
    const size_t key_width = static_cast<size_t>(shape.key_heads) * shape.width;
    auto source = [&](const float *from, unsigned position) -> const float * {
        if (position >= end) return nullptr;
        const unsigned row = key_row(shape, span, position);
        return row < shape.stored ? from + row * key_width + key_head * shape.width : nullptr;
    };
    stage(query_tile, FORWARD_ROWS, shape.width, [&](unsigned row) -> const float * {
        return queries.holds(row) ? q + queries.index(shape, span, key_head, row) * shape.width : nullptr;
    });

    float top[ROWS], sum[ROWS], sums[ROWS][COLUMNS];
#pragma unroll
    for (unsigned r = 0; r < ROWS; r++) {
        top[r] = -INFINITY, sum[r] = 0.0f;
#pragma unroll
        for (unsigned c = 0; c < COLUMNS; c++) sums[r][c] = 0.0f;
    }
    for (unsigned first = begin; first < end; first += KEYS) {
        __syncthreads(); // the values of the tile before are read
        stage(key_tile, KEYS, shape.width, [&](unsigned key) { return source(keys, first + key); });
        __syncthreads();
        float score[ROWS];
#pragma unroll
        for (unsigned r = 0; r < ROWS; r++) score[r] = 0.0f;
        for (unsigned quad = 0; quad < quads; quad++) {
            const float4 key = vector_at(key_tile, lane * stride + quad * 4);
#pragma unroll
            for (unsigned r = 0; r < ROWS; r++) {
                if (queries.holds(warp + WARPS * r)) {
                    score[r] = dot4(vector_at(query_tile, (warp + WARPS * r) * stride + quad * 4), key, score[r]);
                }
            }
        }
#pragma unroll
        for (unsigned r = 0; r < ROWS; r++) {
            const unsigned row = warp + WARPS * r;
            if (!queries.holds(row)) continue; // the same for the whole warp
            const bool visible = first + lane < end && first + lane <= queries.position(span, row);
            const float scaled = visible ? score[r] * shape.scale : -INFINITY;
            const float larger = fmaxf(top[r], warp_max(scaled));
            // In parts of a sequence a row may have seen no key yet.
            const float keep = larger == -INFINITY ? 1.0f : expf(top[r] - larger);
            const float weight = visible ? expf(scaled - larger) : 0.0f;
            top[r] = larger;
            sum[r] = fmaf(sum[r], keep, warp_sum(weight));
            weights[row * KEYS + lane] = weight;
#pragma unroll
            for (unsigned c = 0; c < COLUMNS; c++) sums[r][c] *= keep;
        }
        __syncthreads(); // the keys are read
        stage(key_tile, KEYS, shape.width, [&](unsigned key) { return source(values, first + key); });
        __syncthreads();
        for (unsigned key = 0; key < KEYS; key++) {
            float value[COLUMNS];
#pragma unroll
            for (unsigned c = 0; c < COLUMNS; c++) {
                const unsigned column = lane + WARP * c;
                value[c] = column < shape.width ? key_tile[key * stride + column] : 0.0f;
            }
#pragma unroll
            for (unsigned r = 0; r < ROWS; r++) {
                const unsigned row = warp + WARPS * r;
                if (!queries.holds(row)) continue;
                const float weight = weights[row * KEYS + key];
#pragma unroll
                for (unsigned c = 0; c < COLUMNS; c++) sums[r][c] = fmaf(weight, value[c], sums[r][c]);
            }
        }
    }
#pragma unroll
    for (unsigned r = 0; r < ROWS; r++) {
        const unsigned row = warp + WARPS * r;
        if (!queries.holds(row)) continue;
        const size_t index = queries.index(shape, span, key_head, row);
        // A whole row: its result and lse. A part of one: [splits][2 + width] values, maximum, sum, sums.
        float *target = splits == 1 ? out + index * shape.width : out + (index * splits + split) * (2 + shape.width) + 2;
        const float divisor = splits == 1 ? sum[r] : 1.0f;
#pragma unroll
        for (unsigned c = 0; c < COLUMNS; c++) {
            if (lane + WARP * c < shape.width) target[lane + WARP * c] = sums[r][c] / divisor;
        }
        if (lane == 0 && splits == 1) lse[index] = top[r] + logf(sum[r]);
        if (lane == 0 && splits != 1) target[-2] = top[r], target[-1] = sum[r];
    }
}

} // namespace cohort

// out [rows, heads * width] and lse [rows, heads]; with splits > 1 parts of them in `out` instead.
// Grid: tiles of query rows, key/value heads, sequences * splits.
#define ATTENTION_FORWARD(COLUMNS)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(128) attention_forward_##COLUMNS(                                                 \
        const float *q, const float *keys, const float *values, const unsigned *spans, const unsigned *tables, float *out,         \
        float *lse, unsigned heads, unsigned key_heads, unsigned width, unsigned rows, unsigned stored, unsigned entries,          \
        unsigned page, float scale, unsigned splits) {                                                                                            \
        cohort::forward<COLUMNS>(q, keys, values, spans, tables, out, lse,                                                         \
                                 {heads, key_heads, width, rows, stored, entries, page, scale}, splits);                           \
    }
ATTENTION_FORWARD(1)
ATTENTION_FORWARD(2)
ATTENTION_FORWARD(3)
ATTENTION_FORWARD(4)

// Joins the parts of each row and head in order of the keys: a warp a head. `positions` of the query rows.
// Grid: rows * heads / 4.
extern "C" __global__ void attention_join(const float *parts, const unsigned *positions, float *out, unsigned rows, unsigned heads,
                                          unsigned width, unsigned splits) {
    const unsigned lane = threadIdx.x % cohort::WARP;
    const size_t index = static_cast<size_t>(blockIdx.x) * cohort::WARPS + threadIdx.x / cohort::WARP;
    if (index >= static_cast<size_t>(rows) * heads) return;
    const unsigned used = min(positions[index / heads] / cohort::SPLIT + 1, splits);
    const size_t length = 2 + width;
    const float *part = parts + index * splits * length;
    float top = -INFINITY, sum = 0.0f;
    for (unsigned split = 0; split < used; split++) top = fmaxf(top, part[split * length]);
    for (unsigned split = 0; split < used; split++) {
        sum = fmaf(part[split * length + 1], expf(part[split * length] - top), sum);
    }
    for (unsigned column = lane; column < width; column += cohort::WARP) {
        float value = 0.0f;
        for (unsigned split = 0; split < used; split++) {
            value = fmaf(part[split * length + 2 + column], expf(part[split * length] - top), value);
        }
        out[index * width + column] = value / sum;
    }
}
