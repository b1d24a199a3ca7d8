// Enough of CUDA to run the kernels of ops/cuda/ on a processor, one block after another. The threads of a block are
// coroutines that take turns at barriers, so a kernel whose result depends on their order shows it when the order is
// turned round (CAKDP_THREADS_BACKWARDS=1), and one whose threads do not all reach a barrier ends in an error.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0 };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
    std::memset(to, value, bytes);
    return cudaSuccess;
}

namespace cuda_on_cpu {

constexpr int kWarp = 32;
constexpr size_t kStack = 128 * 1024;

// Passed when everybody expected has come; the next one to wait begins a new round.
struct Barrier {
    int waiting = 0, expected = 0;
    int64_t round = 0;
    void open_if_full() {
        if (waiting > 0 && waiting >= expected) waiting = 0, ++round;
    }
};

struct Thread {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    bool done = false;
};

struct Block {
    std::vector<Thread> threads;
    std::vector<Barrier> warps;
    Barrier all;
    ucontext_t scheduler;
    std::function<void()> body;
    int current = 0;
    bool moved = false;
    uint64_t slots[1024] = {};  // what each thread shows its warp
    int votes[2] = {0, 0};      // of this round and the next
};

inline Block*& block() {
    static Block* running = nullptr;
    return running;
}

inline void wait_at(Barrier& barrier) {
    Block& now = *block();
    const int64_t round = barrier.round;
    ++barrier.waiting;
    barrier.open_if_full();
    now.moved = true;
    while (barrier.round == round) swapcontext(&now.threads[now.current].context, &now.scheduler);
    now.moved = true;
}

inline void thread_main() {
    Block& now = *block();
    now.body();
    now.threads[now.current].done = now.moved = true;
    Barrier& warp = now.warps[now.current / kWarp];
    --now.all.expected, --warp.expected;
    now.all.open_if_full(), warp.open_if_full();
    swapcontext(&now.threads[now.current].context, &now.scheduler);
}

inline uint64_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline uint64_t bits_of(double value) {
    uint64_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
template <typename T>
uint64_t bits_of(T value) {
    return static_cast<uint64_t>(value);
}
template <typename T>
T from_bits(uint64_t bits) {
    T value;
    std::memcpy(&value, &bits, sizeof value);  // little-endian
    return value;
}

// Shows a value to the warp and returns lane_of's; every lane that is still running takes part.
template <typename T>
T exchange(T value, int lane) {
    Block& now = *block();
    Barrier& warp = now.warps[now.current / kWarp];
    now.slots[now.current] = bits_of(value);
    wait_at(warp);
    const int from = now.current / kWarp * kWarp + lane;
    const bool exists = lane >= 0 && lane < kWarp && from < static_cast<int>(now.threads.size());
    const T answer = exists ? from_bits<T>(now.slots[from]) : value;
    wait_at(warp);
    return answer;
}

}  // namespace cuda_on_cpu

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {

inline void run_block(Block& now, bool backwards) {
    const int count = static_cast<int>(now.threads.size());
    now.all = Barrier{0, count, 0};
    for (size_t i = 0; i < now.warps.size(); ++i)
        now.warps[i] = Barrier{0, std::min(kWarp, count - static_cast<int>(i) * kWarp), 0};
    for (Thread& thread : now.threads) {
        thread.done = false;
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack.get();
        thread.context.uc_stack.ss_size = kStack;
        thread.context.uc_link = nullptr;
        makecontext(&thread.context, thread_main, 0);
    }
    for (int done = 0; done < count;) {
        now.moved = false;
        done = 0;
        for (int turn = 0; turn < count; ++turn) {
            now.current = backwards ? count - 1 - turn : turn;
            Thread& thread = now.threads[now.current];
            threadIdx = dim3(now.current % blockDim.x, now.current / blockDim.x % blockDim.y,
                             now.current / blockDim.x / blockDim.y);
            if (!thread.done) swapcontext(&now.scheduler, &thread.context);
            done += thread.done;
        }
        if (!now.moved) throw std::runtime_error("CUDA on CPU: threads wait at different barriers");
    }
}

}  // namespace cuda_on_cpu

namespace cakdp {

inline void run_on_cpu(dim3 blocks, dim3 threads, std::function<void()> body) {
    using namespace cuda_on_cpu;
    static const bool backwards = std::getenv("CAKDP_THREADS_BACKWARDS") != nullptr;
    const int count = static_cast<int>(threads.x * threads.y * threads.z);
    if (count > 1024) throw std::runtime_error("CUDA on CPU: a block has at most 1024 threads");
    Block now;
    now.body = std::move(body);
    now.threads.resize(count);
    now.warps.resize((count + kWarp - 1) / kWarp);
    for (Thread& thread : now.threads) thread.stack.reset(new char[kStack]);
    block() = &now;
    blockDim = threads, gridDim = blocks;
    for (unsigned z = 0; z < blocks.z; ++z)
        for (unsigned y = 0; y < blocks.y; ++y)
            for (unsigned x = 0; x < blocks.x; ++x) {
                blockIdx = dim3(x, y, z);
                run_block(now, backwards);
            }
    block() = nullptr;
}

}  // namespace cakdp

// Barriers and warps. Masks are taken to name every lane that is still running.
inline void __syncthreads() { cuda_on_cpu::wait_at(cuda_on_cpu::block()->all); }
inline void __syncwarp(unsigned = ~0u) {
    cuda_on_cpu::Block& now = *cuda_on_cpu::block();
    cuda_on_cpu::wait_at(now.warps[now.current / cuda_on_cpu::kWarp]);
}
inline int __syncthreads_count(int predicate) {
    cuda_on_cpu::Block& now = *cuda_on_cpu::block();
    __syncthreads();
    now.votes[0] = 0;
    __syncthreads();
    now.votes[0] += predicate != 0;
    __syncthreads();
    return now.votes[0];
}
inline int __syncthreads_or(int predicate) { return __syncthreads_count(predicate) > 0; }
inline unsigned __ballot_sync(unsigned, int predicate) {
    cuda_on_cpu::Block& now = *cuda_on_cpu::block();
    cuda_on_cpu::Barrier& warp = now.warps[now.current / cuda_on_cpu::kWarp];
    const int first = now.current / cuda_on_cpu::kWarp * cuda_on_cpu::kWarp;
    now.slots[now.current] = predicate != 0;
    cuda_on_cpu::wait_at(warp);
    unsigned mask = 0;
    for (int lane = 0; lane < cuda_on_cpu::kWarp && first + lane < static_cast<int>(now.threads.size()); ++lane)
        if (!now.threads[first + lane].done && now.slots[first + lane]) mask |= 1u << lane;
    cuda_on_cpu::wait_at(warp);
    return mask;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
template <typename T>
T __shfl_sync(unsigned, T value, int lane) {
    return cuda_on_cpu::exchange(value, lane % cuda_on_cpu::kWarp);
}
template <typename T>
T __shfl_down_sync(unsigned, T value, int delta) {
    return cuda_on_cpu::exchange(value, cuda_on_cpu::block()->current % cuda_on_cpu::kWarp + delta);
}
template <typename T>
T __shfl_up_sync(unsigned, T value, int delta) {
    return cuda_on_cpu::exchange(value, cuda_on_cpu::block()->current % cuda_on_cpu::kWarp - delta);
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    return cuda_on_cpu::exchange(value, (cuda_on_cpu::block()->current % cuda_on_cpu::kWarp) ^ mask);
}

// One coroutine runs at a time, so plain arithmetic is atomic.
template <typename T>
T atomicAdd(T* at, T value) {
    const T before = *at;
    *at = before + value;
    return before;
}
template <typename T>
T atomicMax(T* at, T value) {
    const T before = *at;
    *at = std::max(before, value);
    return before;
}
template <typename T>
T atomicMin(T* at, T value) {
    const T before = *at;
    *at = std::min(before, value);
    return before;
}
template <typename T>
T atomicOr(T* at, T value) {
    const T before = *at;
    *at = before | value;
    return before;
}
template <typename T>
T atomicCAS(T* at, T expected, T value) {
    const T before = *at;
    if (before == expected) *at = value;
    return before;
}
template <typename T>
T __ldg(const T* from) {
    return *from;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __ffsll(long long bits) { return __builtin_ffsll(bits); }
inline int __clz(int bits) { return bits ? __builtin_clz(static_cast<unsigned>(bits)) : 32; }
inline void __threadfence() {}
