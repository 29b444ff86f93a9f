// log-softmax of one token a row and the entropy of the row, in one pass over the logits (online softmax, 1805.02867,
// algorithm 3), with z = logit / T:
//   logp = z_t - max - ln S,  S = sum e^(z - max);   H = ln S - D / S,  D = sum e^(z - max) (z - max).
// Way back: d logp / d z_v = [v = t] - p_v,  d H / d z_v = -p_v (ln p_v + H),  d z / d logit = 1 / T.
//
// A block a row. A token outside the vocabulary gives NaN.
#include "../cuda/reduce.cuh"

// Shared memory: three values a warp.
extern __shared__ __align__(16) float arena[];

namespace cohort {

// What some tokens of a row contribute.
struct Part {
    float max, sum, dot;
};

// Two disjoint parts as one. A part without tokens has max -inf and sum 0.
__device__ __forceinline__ Part joined(Part a, Part b) {
    const float top = fmaxf(a.max, b.max);
    // A shift of -inf (no tokens) times a sum of zero would be NaN.
    const float da = a.max == top || a.sum == 0.0f ? 0.0f : a.max - top;
    const float db = b.max == top || b.sum == 0.0f ? 0.0f : b.max - top;
    const float wa = expf(da), wb = expf(db);
    return {top, wa * a.sum + wb * b.sum, wa * (a.dot + da * a.sum) + wb * (b.dot + db * b.sum)};
}

} // namespace cohort

// stats [4][rows]: logp, entropy, max, ln S. Grid: rows.
extern "C" __global__ void logprob_forward(const float *logits, const unsigned *tokens, const float *temperatures, float *stats,
                                           unsigned rows, unsigned vocab) {
    using cohort::Part;
    using cohort::WARP;
    const unsigned row = blockIdx.x;
    const float *line = logits + static_cast<size_t>(row) * vocab;
    const float temperature = temperatures[row];
    Part part = {-INFINITY, 0.0f, 0.0f};
    for (unsigned i = threadIdx.x; i < vocab; i += blockDim.x) {
        const float z = line[i] / temperature;
        if (z == -INFINITY) continue; // probability zero adds nothing
        if (z > part.max) {
            if (part.sum != 0.0f) {
                const float shift = part.max - z, weight = expf(shift);
                part.dot = weight * (part.dot + shift * part.sum);
                part.sum *= weight;
            }
            part.max = z;
        }
        const float d = z - part.max, e = expf(d);
        part.sum += e;
        if (e != 0.0f) part.dot = fmaf(e, d, part.dot);
    }
#pragma unroll
    for (unsigned apart = WARP / 2; apart > 0; apart /= 2) {
        const Part other = {__shfl_xor_sync(cohort::ALL_LANES, part.max, apart), __shfl_xor_sync(cohort::ALL_LANES, part.sum, apart),
                            __shfl_xor_sync(cohort::ALL_LANES, part.dot, apart)};
        part = cohort::joined(part, other);
    }
    if (threadIdx.x % WARP == 0) {
        float *slot = arena + threadIdx.x / WARP * 3;
        slot[0] = part.max, slot[1] = part.sum, slot[2] = part.dot;
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (unsigned warp = 1; warp < blockDim.x / WARP; warp++) {
        const float *slot = arena + warp * 3;
        part = cohort::joined(part, {slot[0], slot[1], slot[2]});
    }
    const float log_sum = logf(part.sum);
    const unsigned token = tokens[row];
    stats[row] = token < vocab ? line[token] / temperature - part.max - log_sum : NAN;
    stats[rows + row] = log_sum - part.dot / part.sum;
    stats[2 * rows + row] = part.max;
    stats[3 * rows + row] = log_sum;
}

// d_logits from the forward's stats and up [2][rows] or longer: dL/dlogp, dL/dentropy. Grid: rows.
extern "C" __global__ void logprob_backward(const float *logits, const unsigned *tokens, const float *temperatures,
                                            const float *stats, const float *up, float *d_logits, unsigned rows, unsigned vocab) {
    const unsigned row = blockIdx.x;
    const size_t line = static_cast<size_t>(row) * vocab;
    const float temperature = temperatures[row], entropy = stats[rows + row];
    const float max = stats[2 * rows + row], log_sum = stats[3 * rows + row];
    const float d_logp = up[row], d_entropy = up[rows + row];
    const unsigned token = tokens[row];
    for (unsigned i = threadIdx.x; i < vocab; i += blockDim.x) {
        const float logp = logits[line + i] / temperature - max - log_sum;
        const float p = expf(logp);
        const float surprise = p == 0.0f ? 0.0f : logp + entropy;
        const float own = i == token ? d_logp : 0.0f;
        d_logits[line + i] = (own - p * fmaf(d_entropy, surprise, d_logp)) / temperature;
    }
}
