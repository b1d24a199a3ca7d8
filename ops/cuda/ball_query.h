// The first points, in the order of the rows, nearer than some radii to each query.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "frames.h"

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

// xyz (3, num_points), one axis after another; queries (num_queries, 3).
template <typename T>
void ball_query_cuda(const T* xyz, const T* queries, const Stacks& stacks, const Balls<T>& balls, cudaStream_t stream);

}  // namespace cakdp
