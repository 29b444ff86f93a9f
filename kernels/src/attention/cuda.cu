// Attention: out = softmax(scale Q K^T + causal mask) V, in tiles that never leave the chip (FlashAttention-2, 2307.08691).
// The formulas stand on top of each part.
#include "forward.cuh"
#include "backward.cuh"
