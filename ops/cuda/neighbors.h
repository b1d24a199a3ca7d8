// The points of its own frame that each region holds: first how many, then which, in the order of the points.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "frames.h"

namespace cakdp {

// What the queries of the stacks are: boxes (num_queries, 7), or with is_ball the centres (num_queries, 3) of balls.
template <typename T>
struct Regions {
    const T* numbers;
    T radius_squared;
    bool is_ball;
};

// Into how many chunks the points are cut, so that few regions, too, give every multiprocessor work.
int64_t neighbor_chunks(int64_t num_regions, int64_t num_points);

// counts (num_queries, chunks): how many points of each chunk a region holds.
template <typename T>
void count_neighbors_cuda(const T* points, const Regions<T>& regions, const Stacks& stacks, int64_t chunks,
                          int64_t* counts, cudaStream_t stream);

// Writes the list of each region from index[start[region]] on, length[region] points at most; before
// (num_queries, chunks) says how many points of earlier chunks the region holds.
template <typename T>
void list_neighbors_cuda(const T* points, const Regions<T>& regions, const Stacks& stacks, int64_t chunks,
                         const int64_t* before, const int64_t* start, const int64_t* length, int64_t* index,
                         cudaStream_t stream);

}  // namespace cakdp
