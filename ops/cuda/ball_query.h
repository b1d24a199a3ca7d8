// The first points, in the order of the rows, nearer than some radii to each query.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace cakdp {

constexpr int kBallsAtOnce = 4;

// What to find within a radius: index (queries, num_samples) rows of the points, empty (queries,).
template <typename T>
struct Balls {
    int count;
    T largest_squared;
    T radius_squared[kBallsAtOnce];
    int64_t num_samples[kBallsAtOnce];
    int64_t* index[kBallsAtOnce];
    bool* empty[kBallsAtOnce];
};

// xyz (3, num_points), one axis after another; queries (num_queries, 3); starts and query_starts (clouds + 1,), where
// the points and the queries of each frame begin.
template <typename T>
void ball_query_cuda(const T* xyz, const int64_t* starts, const T* queries, const int64_t* query_starts,
                     int64_t num_points, int64_t num_queries, int64_t clouds, const Balls<T>& balls,
                     cudaStream_t stream);

}  // namespace cakdp
