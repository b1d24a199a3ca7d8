// What the threads of a warp do together. Only .cu files include this.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace cakdp {

constexpr int kWarp = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;

__device__ inline int lane() { return static_cast<int>(threadIdx.x % kWarp); }

// The number of this warp among those of all blocks, and how many those are.
__device__ inline int64_t warp_index() { return (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kWarp; }
__device__ inline int64_t warp_count() { return int64_t{gridDim.x} * blockDim.x / kWarp; }

// Blocks of so many threads that give every item a warp.
inline dim3 blocks_of_warps(int64_t items, int threads) {
    const int64_t warps = threads / kWarp;
    return dim3(static_cast<unsigned>((items + warps - 1) / warps));
}

}  // namespace cakdp
