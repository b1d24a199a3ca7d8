// A warp a query: its lanes look at 32 points at a time and a vote puts those found in order. It stops when all balls
// are full. Warps walk along the same points at the same time, so that these come from the cache.
#include "ball_query.h"

#include "cloud_scan.h"
#include "launch.h"
#include "warp.h"

namespace cakdp {
namespace {

// Marks which of the lanes' points lie within one ball and writes their rows; returns how many the ball holds now.
template <typename T>
__device__ int64_t take(T squared, int64_t row, T radius_squared, int64_t found, int64_t num_samples, int64_t* index) {
    const bool near = squared < radius_squared;
    const unsigned votes = __ballot_sync(kWholeWarp, near);
    const int64_t slot = found + __popc(votes & ((1u << lane()) - 1));
    if (near && slot < num_samples) index[slot] = row;
    const int64_t total = found + __popc(votes);
    return total < num_samples ? total : num_samples;
}

// Fills the slots of a ball that are left over, with its first row.
__device__ inline void fill(int64_t found, int64_t num_samples, int64_t* index, bool* empty) {
    __syncwarp();
    const int64_t rest = found > 0 ? index[0] : 0;
    for (int64_t slot = found + lane(); slot < num_samples; slot += kWarp) index[slot] = rest;
    if (lane() == 0) *empty = found == 0;
}

template <typename T>
__global__ void find_neighbours(const T* xyz, const T* queries, Stacks stacks, Balls<T> balls) {
    const int64_t query = warp_index();
    if (query >= stacks.num_queries) return;
    const T position[3] = {queries[3 * query], queries[3 * query + 1], queries[3 * query + 2]};
    const Rows points = points_of_frame(stacks, query);
    int64_t found[kBallsAtOnce] = {};
    bool open = true;
    for (int64_t first = points.begin; first < points.end && open; first += kScan) {
        T squared[kRounds];
        measure(xyz, stacks.num_points, first, points.end, position, squared);
#pragma unroll
        for (int round = 0; round < kRounds; ++round) {
            if (!__any_sync(kWholeWarp, squared[round] < balls.largest_squared)) continue;
            open = false;
#pragma unroll
            for (int i = 0; i < kBallsAtOnce; ++i) {
                if (i >= balls.count || found[i] >= balls.num_samples[i]) continue;
                found[i] = take(squared[round], first + lane() + round * kWarp, balls.radius_squared[i], found[i],
                                balls.num_samples[i], balls.index[i] + query * balls.num_samples[i]);
                open = open || found[i] < balls.num_samples[i];
            }
        }
    }
#pragma unroll
    for (int i = 0; i < kBallsAtOnce; ++i)
        if (i < balls.count)
            fill(found[i], balls.num_samples[i], balls.index[i] + query * balls.num_samples[i], balls.empty[i] + query);
}

}  // namespace

template <typename T>
void ball_query_cuda(const T* xyz, const T* queries, const Stacks& stacks, const Balls<T>& balls, cudaStream_t stream) {
    launch(find_neighbours<T>, blocks_of_warps(stacks.num_queries, kThreads), dim3(kThreads), stream, xyz, queries,
           stacks, balls);
}

template void ball_query_cuda(const float*, const float*, const Stacks&, const Balls<float>&, cudaStream_t);
template void ball_query_cuda(const double*, const double*, const Stacks&, const Balls<double>&, cudaStream_t);

}  // namespace cakdp
