// How a warp walks over the points of one frame, of those that lie one after another. Only .cu files include this.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "distance.h"
#include "warp.h"

namespace cakdp {

constexpr int kRounds = 4;  // of a warp's width each, read together so that one wait serves them all
constexpr int kScan = kRounds * kWarp;

// This lane's squared distances from a position to the points first + lane() + round * kWarp; infinite from end on.
// xyz is (3, num_points), one axis after another.
template <typename T>
__device__ void measure(const T* xyz, int64_t num_points, int64_t first, int64_t end, const T* position,
                        T (&squared)[kRounds]) {
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
        const int64_t row = first + lane() + round * kWarp;
        squared[round] = T(INFINITY);
        if (row < end)
            squared[round] = squared_length(xyz[row] - position[0], xyz[num_points + row] - position[1],
                                            xyz[2 * num_points + row] - position[2]);
    }
}

}  // namespace cakdp
