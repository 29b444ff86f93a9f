// Runs the kernels on the host: every thread of a block is a fiber, blocks come one after the other. Between two barriers
// a thread runs alone, a warp as far ahead of the others as barriers let it, in an order that the caller chooses: a result
// that depends on it has lost a barrier.
//
// Refused, since a GPU would hang or compute garbage: a barrier that some threads of the block (or of the warp) do not
// reach. Shared memory begins as NaN and has a guard behind it, since a GPU does not clear it and does not check it.
#include "cuda.h"
#include <csetjmp>
#include <memory>
#include <ucontext.h>
#include <utility>
#include <vector>

thread_local Index3 threadIdx, blockIdx, blockDim, gridDim;

namespace {
constexpr size_t SHARED_BYTES = 48 * 1024; // what every GPU gives a block without asking
constexpr size_t GUARD = 256;              // values behind it
constexpr size_t STACK_BYTES = 64 * 1024;
constexpr unsigned WARP_LANES = 32, MOST_THREADS = 1024;
constexpr uint32_t POISON = 0x7fc0dead; // a NaN
} // namespace

// The dynamic shared memory of a block.
alignas(16) thread_local float arena[SHARED_BYTES / 4 + GUARD];

namespace {

enum class At { Start, Running, Warp, Block, Done };
enum Outcome { FINE = 0, UNKNOWN_KERNEL = 1, SHARED_OVERRUN = 2, LOST_AT_BARRIER = 3, TOO_LARGE = 4 };

using Call = void (*)(void **);

struct Fiber {
    At at = At::Done;
    jmp_buf resume;
    std::unique_ptr<char[]> stack;
    ucontext_t first;
};

thread_local std::vector<Fiber> fibers;
thread_local jmp_buf scheduler;
thread_local unsigned current;
thread_local Call kernel;
thread_local void **arguments;
thread_local float exchanged[2][MOST_THREADS];
thread_local unsigned exchanges[MOST_THREADS];

// Leaves the fiber; comes back when the scheduler resumes it.
void wait_at(At place) {
    Fiber &fiber = fibers[current];
    fiber.at = place;
    if (_setjmp(fiber.resume) == 0) _longjmp(scheduler, 1);
}

void body() {
    // Endless: a finished fiber waits for the next block's kernel on the same stack.
    for (;;) {
        kernel(arguments);
        wait_at(At::Done);
    }
}

// Runs one fiber until it waits.
void run(unsigned index) {
    current = index;
    threadIdx = {index, 0, 0};
    Fiber &fiber = fibers[index];
    const bool fresh = fiber.stack == nullptr;
    if (fresh) {
        fiber.stack.reset(new char[STACK_BYTES]);
        getcontext(&fiber.first);
        fiber.first.uc_stack.ss_sp = fiber.stack.get();
        fiber.first.uc_stack.ss_size = STACK_BYTES;
        fiber.first.uc_link = nullptr;
        makecontext(&fiber.first, body, 0);
    }
    fiber.at = At::Running;
    if (_setjmp(scheduler) == 0) {
        if (fresh) setcontext(&fiber.first);
        _longjmp(fiber.resume, 1);
    }
}

// The order in which blocks, warps and threads come: ascending, descending, or scattered.
unsigned nth(unsigned i, unsigned count, unsigned order) {
    if (order == 0) return i;
    if (order == 1) return count - 1 - i;
    // An odd step visits every place of a power of two; others fall back to turning by half.
    return (count & (count - 1)) == 0 ? (i * 5 + 3) & (count - 1) : (i + count / 2) % count;
}

// Whether threads first .. end all wait at `place`.
bool all_at(At place, unsigned first, unsigned end) {
    for (unsigned i = first; i < end; i++) {
        if (fibers[i].at != place) return false;
    }
    return true;
}

// Runs a warp as far as it gets without the others.
void run_warp(unsigned first, unsigned order) {
    for (;;) {
        for (unsigned i = 0; i < WARP_LANES; i++) {
            const unsigned index = first + nth(i, WARP_LANES, order);
            if (fibers[index].at == At::Start) run(index);
        }
        if (!all_at(At::Warp, first, first + WARP_LANES)) return;
        for (unsigned i = first; i < first + WARP_LANES; i++) fibers[i].at = At::Start;
    }
}

Outcome run_block(unsigned threads, size_t shared_bytes, unsigned order) {
    uint32_t *words = reinterpret_cast<uint32_t *>(arena);
    const size_t length = shared_bytes / 4 + GUARD;
    for (size_t i = 0; i < length; i++) words[i] = POISON;
    for (unsigned i = 0; i < threads; i++) fibers[i].at = At::Start, exchanges[i] = 0;
    const unsigned warps = threads / WARP_LANES;
    for (;;) {
        for (unsigned i = 0; i < warps; i++) run_warp(nth(i, warps, order) * WARP_LANES, order);
        if (all_at(At::Done, 0, threads)) break;
        if (!all_at(At::Block, 0, threads)) {
            fibers.clear(); // their stacks are in the middle of a kernel
            return LOST_AT_BARRIER;
        }
        for (unsigned i = 0; i < threads; i++) fibers[i].at = At::Start;
    }
    for (size_t i = shared_bytes / 4; i < length; i++) {
        if (words[i] != POISON) return SHARED_OVERRUN;
    }
    return FINE;
}

} // namespace

void __syncthreads() { wait_at(At::Block); }
void __syncwarp(unsigned) { wait_at(At::Warp); }

float __shfl_xor_sync(unsigned, float value, unsigned apart) {
    // Two slots in turn: a lane writes its next value only after all have read this one.
    const unsigned self = current, turn = exchanges[self]++ % 2;
    exchanged[turn][self] = value;
    wait_at(At::Warp);
    return exchanged[turn][self ^ apart];
}

#include "../../adamw/cuda.cu"
#include "../../attention/cuda.cu"
#include "../../logprob/cuda.cu"
#include "../../rmsnorm/cuda.cu"
#include "../../rope/cuda.cu"
#include "../../swiglu/cuda.cu"
#include "../../tree/cuda.cu"
#include "faults.cu"

namespace {

// Calls a kernel with its arguments behind pointers, as the CUDA driver takes them.
template <class... A, size_t... I>
void unpack(void (*function)(A...), void **args, std::index_sequence<I...>) {
    function(*static_cast<A *>(args[I])...);
}
template <class... A>
void unpack(void (*function)(A...), void **args) {
    unpack(function, args, std::index_sequence_for<A...>{});
}
template <auto Function>
void call(void **args) {
    unpack(Function, args);
}

struct Named {
    const char *name;
    Call call;
};

#define KERNEL(name) {#name, call<name>}
#define KERNELS(name) KERNEL(name##_1), KERNEL(name##_2), KERNEL(name##_3), KERNEL(name##_4)
const Named KERNELS_BY_NAME[] = {
    KERNEL(adamw_step),
    KERNELS(attention_forward),
    KERNEL(attention_join),
    KERNEL(attention_delta),
    KERNELS(attention_backward_query),
    KERNELS(attention_backward_key),
    KERNEL(logprob_forward),
    KERNEL(logprob_backward),
    KERNEL(rmsnorm_forward),
    KERNEL(rmsnorm_forward_add),
    KERNEL(rmsnorm_backward),
    KERNEL(rmsnorm_weight_parts),
    KERNEL(rmsnorm_weight_sum),
    KERNEL(rope_rotate),
    KERNEL(rope_append),
    KERNEL(swiglu_forward),
    KERNEL(swiglu_backward),
    KERNEL(tree_sum),
    KERNEL(fault_lost_barrier),
    KERNEL(fault_two_writers),
    KERNEL(fault_outside),
    KERNEL(fault_shared_overrun),
    KERNEL(fault_left_at_barrier),
};

} // namespace

// Runs a kernel over a grid. `order` decides in which order blocks and their threads come: 0, 1 or 2.
extern "C" int cuda_host_launch(const char *name, const unsigned *grid, unsigned threads, unsigned shared_bytes, void **args,
                                unsigned order) {
    kernel = nullptr;
    for (const Named &named : KERNELS_BY_NAME) {
        if (std::strcmp(named.name, name) == 0) kernel = named.call;
    }
    if (kernel == nullptr) return UNKNOWN_KERNEL;
    if (threads > MOST_THREADS || threads % WARP_LANES != 0 || shared_bytes > SHARED_BYTES) return TOO_LARGE;
    if (fibers.size() < threads) {
        fibers.clear(); // a fiber's saved context holds its address
        fibers = std::vector<Fiber>(MOST_THREADS);
    }
    arguments = args;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {threads, 1, 1};
    const unsigned blocks = grid[0] * grid[1] * grid[2];
    for (unsigned i = 0; i < blocks; i++) {
        const unsigned block = nth(i, blocks, order);
        blockIdx = {block % grid[0], block / grid[0] % grid[1], block / grid[0] / grid[1]};
        const Outcome outcome = run_block(threads, shared_bytes, order);
        if (outcome != FINE) return outcome;
    }
    return FINE;
}
