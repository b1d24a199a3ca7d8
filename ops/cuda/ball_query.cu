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
__global__ void find_neighbours(const T* xyz, const int64_t* starts, const T* queries, const int64_t* query_starts,
                                int64_t num_points, int64_t num_queries, int64_t clouds, Balls<T> balls) {
    const int64_t query = warp_index();
    if (query >= num_queries) return;
    const T position[3] = {queries[3 * query], queries[3 * query + 1], queries[3 * query + 2]};
    const int64_t cloud = cloud_of(query_starts, clouds, query);
    const int64_t begin = cloud < clouds ? starts[cloud] : 0, end = cloud < clouds ? starts[cloud + 1] : 0;
    int64_t found[kBallsAtOnce] = {};
    bool open = true;
    for (int64_t first = begin; first < end && open; first += kScan) {
        T squared[kRounds];
        measure(xyz, num_points, first, end, position, squared);
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
void ball_query_cuda(const T* xyz, const int64_t* starts, const T* queries, const int64_t* query_starts,
                     int64_t num_points, int64_t num_queries, int64_t clouds, const Balls<T>& balls,
                     cudaStream_t stream) {
    launch(find_neighbours<T>, blocks_of_warps(num_queries, kThreads), dim3(kThreads), stream, xyz, starts, queries,
           query_starts, num_points, num_queries, clouds, balls);
}

template void ball_query_cuda(const float*, const int64_t*, const float*, const int64_t*, int64_t, int64_t, int64_t,
                              const Balls<float>&, cudaStream_t);
template void ball_query_cuda(const double*, const int64_t*, const double*, const int64_t*, int64_t, int64_t, int64_t,
                              const Balls<double>&, cudaStream_t);

}  // namespace cakdp
