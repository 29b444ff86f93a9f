// The way back (2307.08691, algorithm 2): probabilities are computed again from lse. With D = dout . out of a row,
//   ds_t = p_t (dout . v_t - D) scale;  dq = sum_t ds_t k_t;  dk_t = sum over rows of ds_t q;  dv_t = sum over rows of p_t dout.
// Two kernels instead of one: each output has one owner, which adds in ascending order. Keys are rows of the same batch.
#pragma once
#include "tiles.cuh"

// D of each row and head: a warp a head. Grid: rows * heads / 4.
extern "C" __global__ void attention_delta(const float *out, const float *d_out, float *delta, unsigned count, unsigned width) {
    const size_t index = static_cast<size_t>(blockIdx.x) * cohort::WARPS + threadIdx.x / cohort::WARP;
    if (index >= count) return;
    float sum = 0.0f;
    for (unsigned i = threadIdx.x % cohort::WARP; i < width; i += cohort::WARP) {
        sum = fmaf(out[index * width + i], d_out[index * width + i], sum);
    }
    sum = cohort::warp_sum(sum);
    if (threadIdx.x % cohort::WARP == 0) delta[index] = sum;
}

namespace cohort {

constexpr unsigned QUERY_ROWS = 16; // query rows of a tile of `backward_query`
constexpr unsigned KEY_ROWS = 8;    // query rows of a tile of `backward_key`

template <unsigned COLUMNS>
__device__ __forceinline__ void backward_query(const float *q, const float *keys, const float *values, const float *d_out,
                                               const float *lse, const float *delta, const unsigned *spans,
                                               const unsigned *tables, float *dq, Shape shape) {
    constexpr unsigned ROWS = QUERY_ROWS / WARPS; // of a warp
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, key_head = blockIdx.y;
    const Span span = span_of(shape, spans, tables, blockIdx.z);
    const unsigned group = shape.heads / shape.key_heads;
    const Queries queries = {group, blockIdx.x * QUERY_ROWS, span.fresh * group};
    if (queries.first >= queries.count) return;
    const unsigned end = span.past + (min(queries.first + QUERY_ROWS, queries.count) - 1) / group + 1;

    const unsigned stride = stride_of(shape.width), quads = stride / 4 - 1;
    float *query_tile = arena;                          // [QUERY_ROWS][stride]
    float *d_out_tile = query_tile + QUERY_ROWS * stride; // the same
    float *key_tile = d_out_tile + QUERY_ROWS * stride; // [KEYS][stride], values then keys
    float *d_scores = key_tile + KEYS * stride;         // [QUERY_ROWS][KEYS]
    const size_t key_width = static_cast<size_t>(shape.key_heads) * shape.width;
    auto source = [&](const float *from, unsigned position) -> const float * {
        if (position >= end) return nullptr;
        const unsigned row = key_row(shape, span, position);
        return row < shape.stored ? from + row * key_width + key_head * shape.width : nullptr;
    };
    auto query = [&](const float *from, unsigned row) -> const float * {
        return queries.holds(row) ? from + queries.index(shape, span, key_head, row) * shape.width : nullptr;
    };
    stage(query_tile, QUERY_ROWS, shape.width, [&](unsigned row) { return query(q, row); });
    stage(d_out_tile, QUERY_ROWS, shape.width, [&](unsigned row) { return query(d_out, row); });

    float sums[ROWS][COLUMNS];
#pragma unroll
    for (unsigned r = 0; r < ROWS; r++) {
#pragma unroll
        for (unsigned c = 0; c < COLUMNS; c++) sums[r][c] = 0.0f;
    }
    for (unsigned first = 0; first < end; first += KEYS) {
        float score[ROWS], d_weight[ROWS];
#pragma unroll
        for (unsigned r = 0; r < ROWS; r++) score[r] = 0.0f, d_weight[r] = 0.0f;
        __syncthreads(); // the keys of the tile before are read
        stage(key_tile, KEYS, shape.width, [&](unsigned key) { return source(values, first + key); });
        __syncthreads();
        for (unsigned quad = 0; quad < quads; quad++) {
            const float4 value = vector_at(key_tile, lane * stride + quad * 4);
#pragma unroll
            for (unsigned r = 0; r < ROWS; r++) {
                d_weight[r] = dot4(vector_at(d_out_tile, (warp + WARPS * r) * stride + quad * 4), value, d_weight[r]);
            }
        }
        __syncthreads(); // the values are read
        stage(key_tile, KEYS, shape.width, [&](unsigned key) { return source(keys, first + key); });
        __syncthreads();
        for (unsigned quad = 0; quad < quads; quad++) {
            const float4 key = vector_at(key_tile, lane * stride + quad * 4);
#pragma unroll
            for (unsigned r = 0; r < ROWS; r++) {
                score[r] = dot4(vector_at(query_tile, (warp + WARPS * r) * stride + quad * 4), key, score[r]);
            }
        }
#pragma unroll
        for (unsigned r = 0; r < ROWS; r++) {
            const unsigned row = warp + WARPS * r;
            float d_score = 0.0f;
            if (queries.holds(row) && first + lane < end && first + lane <= queries.position(span, row)) {
                const size_t index = queries.index(shape, span, key_head, row);
                d_score = expf(score[r] * shape.scale - lse[index]) * (d_weight[r] - delta[index]) * shape.scale;
            }
            d_scores[row * KEYS + lane] = d_score;
        }
        __syncwarp(); // a warp reads only its own rows
        for (unsigned key = 0; key < KEYS; key++) {
#pragma unroll
            for (unsigned c = 0; c < COLUMNS; c++) {
                const unsigned column = lane + WARP * c;
                const float value = column < shape.width ? key_tile[key * stride + column] : 0.0f;
#pragma unroll
                for (unsigned r = 0; r < ROWS; r++) {
                    sums[r][c] = fmaf(d_scores[(warp + WARPS * r) * KEYS + key], value, sums[r][c]);
                }
            }
        }
    }
#pragma unroll
    for (unsigned r = 0; r < ROWS; r++) {
        const unsigned row = warp + WARPS * r;
        if (!queries.holds(row)) continue;
        float *target = dq + queries.index(shape, span, key_head, row) * shape.width;
#pragma unroll
        for (unsigned c = 0; c < COLUMNS; c++) {
            if (lane + WARP * c < shape.width) target[lane + WARP * c] = sums[r][c];
        }
    }
}

template <unsigned COLUMNS>
__device__ __forceinline__ void backward_key(const float *q, const float *keys, const float *values, const float *d_out,
                                             const float *lse, const float *delta, const unsigned *spans, float *dk, float *dv,
                                             Shape shape) {
    constexpr unsigned OWN = KEYS / WARPS; // keys of a warp
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, key_head = blockIdx.y;
    const Span span = span_of(shape, spans, nullptr, blockIdx.z);
    const unsigned first = blockIdx.x * KEYS;
    if (first >= span.fresh) return;
    const unsigned group = shape.heads / shape.key_heads;

    const unsigned stride = stride_of(shape.width), quads = stride / 4 - 1;
    float *key_tile = arena;                            // [KEYS][stride]
    float *value_tile = key_tile + KEYS * stride;       // the same
    float *query_tile = value_tile + KEYS * stride;     // [KEY_ROWS][stride]
    float *d_out_tile = query_tile + KEY_ROWS * stride; // the same
    float *weights = d_out_tile + KEY_ROWS * stride;    // [KEY_ROWS][KEYS]
    float *d_scores = weights + KEY_ROWS * KEYS;        // the same
    const size_t key_width = static_cast<size_t>(shape.key_heads) * shape.width;
    auto key_at = [&](unsigned key) { return (span.start + first + key) * key_width + key_head * shape.width; };
    stage(key_tile, KEYS, shape.width,
          [&](unsigned key) -> const float * { return first + key < span.fresh ? keys + key_at(key) : nullptr; });
    stage(value_tile, KEYS, shape.width,
          [&](unsigned key) -> const float * { return first + key < span.fresh ? values + key_at(key) : nullptr; });

    float k_sums[OWN][COLUMNS], v_sums[OWN][COLUMNS];
#pragma unroll
    for (unsigned i = 0; i < OWN; i++) {
#pragma unroll
        for (unsigned c = 0; c < COLUMNS; c++) k_sums[i][c] = 0.0f, v_sums[i][c] = 0.0f;
    }
    // Rows before the first key's position see none of these keys.
    Queries queries = {group, first * group, span.fresh * group};
    for (; queries.first < queries.count; queries.first += KEY_ROWS) {
        auto query = [&](const float *from, unsigned row) -> const float * {
            return queries.holds(row) ? from + queries.index(shape, span, key_head, row) * shape.width : nullptr;
        };
        __syncthreads(); // the tiles of the rows before are read
        stage(query_tile, KEY_ROWS, shape.width, [&](unsigned row) { return query(q, row); });
        stage(d_out_tile, KEY_ROWS, shape.width, [&](unsigned row) { return query(d_out, row); });
        __syncthreads();
#pragma unroll
        for (unsigned r = 0; r < KEY_ROWS / WARPS; r++) {
            const unsigned row = warp + WARPS * r;
            float score = 0.0f, d_weight = 0.0f;
            for (unsigned quad = 0; quad < quads; quad++) {
                const unsigned at = quad * 4;
                score = dot4(vector_at(query_tile, row * stride + at), vector_at(key_tile, lane * stride + at), score);
                d_weight = dot4(vector_at(d_out_tile, row * stride + at), vector_at(value_tile, lane * stride + at), d_weight);
            }
            float weight = 0.0f, d_score = 0.0f;
            if (queries.holds(row) && first + lane < span.fresh && first + lane <= (queries.first + row) / group) {
                const size_t index = queries.index(shape, span, key_head, row);
                weight = expf(score * shape.scale - lse[index]);
                d_score = weight * (d_weight - delta[index]) * shape.scale;
            }
            weights[row * KEYS + lane] = weight;
            d_scores[row * KEYS + lane] = d_score;
        }
        __syncthreads();
        for (unsigned row = 0; row < KEY_ROWS; row++) {
#pragma unroll
            for (unsigned c = 0; c < COLUMNS; c++) {
                const unsigned column = lane + WARP * c;
                const float query_value = column < shape.width ? query_tile[row * stride + column] : 0.0f;
                const float d_out_value = column < shape.width ? d_out_tile[row * stride + column] : 0.0f;
#pragma unroll
                for (unsigned i = 0; i < OWN; i++) {
                    const unsigned key = warp * OWN + i;
                    k_sums[i][c] = fmaf(d_scores[row * KEYS + key], query_value, k_sums[i][c]);
                    v_sums[i][c] = fmaf(weights[row * KEYS + key], d_out_value, v_sums[i][c]);
                }
            }
        }
    }
#pragma unroll
    for (unsigned i = 0; i < OWN; i++) {
        const unsigned key = warp * OWN + i;
        if (first + key >= span.fresh) continue;
#pragma unroll
        for (unsigned c = 0; c < COLUMNS; c++) {
            const unsigned column = lane + WARP * c;
            if (column >= shape.width) continue;
            dk[key_at(key) + column] = k_sums[i][c];
            dv[key_at(key) + column] = v_sums[i][c];
        }
    }
}

} // namespace cohort

// dq [rows, heads * width]. Grid: tiles of query rows, key/value heads, sequences.
// dk, dv [rows, key_heads * width]. Grid: tiles of keys, key/value heads, sequences.
#define ATTENTION_BACKWARD(COLUMNS)                                                                                                \
    extern "C" __global__ void __launch_bounds__(128) attention_backward_query_##COLUMNS(                                          \
        const float *q, const float *keys, const float *values, const float *d_out, const float *lse, const float *delta,          \
        const unsigned *spans, const unsigned *tables, float *dq, unsigned heads, unsigned key_heads, unsigned width,              \
        unsigned rows, unsigned stored, unsigned entries, unsigned page, float scale) {                                            \
        cohort::backward_query<COLUMNS>(q, keys, values, d_out, lse, delta, spans, tables, dq,                                     \
                                        {heads, key_heads, width, rows, stored, entries, page, scale});                            \
    }                                                                                                                              \
    extern "C" __global__ void __launch_bounds__(128) attention_backward_key_##COLUMNS(                                            \
        const float *q, const float *keys, const float *values, const float *d_out, const float *lse, const float *delta,          \
        const unsigned *spans, float *dk, float *dv, unsigned heads, unsigned key_heads, unsigned width, unsigned rows,            \
        float scale) {                                                                                                             \
        cohort::backward_key<COLUMNS>(q, keys, values, d_out, lse, delta, spans, dk, dv,                                           \
                                      {heads, key_heads, width, rows, rows, ~0u, ~0u, scale});                                     \
    }
ATTENTION_BACKWARD(1)
ATTENTION_BACKWARD(2)
ATTENTION_BACKWARD(3)
ATTENTION_BACKWARD(4)
