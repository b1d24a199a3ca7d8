// Pairs of boxes, 32 by 32, for a warp: all are tested for being near, one column a lane; only those that are get into
// a queue, so that the costly comparison of the few runs in full warps. Only .cu files include this.
#pragma once

#include "box.h"
#include "launch.h"
#include "warp.h"

namespace cakdp {

constexpr int kPairThreads = 128;
constexpr int kPairWarps = kPairThreads / kWarp;

template <typename T>
struct WarpPairs {
    Box<T> rows[kWarp], columns[kWarp];
    uint16_t queue[kWarp * kWarp];
    unsigned bits[kWarp];  // one word a row, for those who need it

    // Bit r of a lane's answer: its column, below num_columns, is near row r, below num_rows.
    __device__ unsigned meeting_rows(int num_rows, int num_columns, T margin) const;

    // Queues every pair marked in the lanes' words and returns how many there are.
    __device__ int enqueue(unsigned meeting);

    __device__ static int row_of(int item) { return item / kWarp; }
    __device__ static int column_of(int item) { return item % kWarp; }
};

template <typename T>
__device__ unsigned WarpPairs<T>::meeting_rows(int num_rows, int num_columns, T margin) const {
    if (lane() >= num_columns) return 0;
    const T x = columns[lane()].x, y = columns[lane()].y, radius = columns[lane()].radius + margin;
    unsigned meeting = 0;
    for (int r = 0; r < num_rows; ++r) {
        const T east = rows[r].x - x, north = rows[r].y - y, reach = rows[r].radius + radius;
        if (east * east + north * north <= reach * reach) meeting |= 1u << r;
    }
    return meeting;
}

template <typename T>
__device__ int WarpPairs<T>::enqueue(unsigned meeting) {
    const int own = __popc(meeting);
    int sum = own;
    for (int step = 1; step < kWarp; step *= 2) {
        const int before = __shfl_up_sync(kWholeWarp, sum, step);
        if (lane() >= step) sum += before;
    }
    for (int place = sum - own; meeting != 0; meeting &= meeting - 1)
        queue[place++] = static_cast<uint16_t>((__ffs(static_cast<int>(meeting)) - 1) * kWarp + lane());
    __syncwarp();
    return __shfl_sync(kWholeWarp, sum, kWarp - 1);
}

}  // namespace cakdp
