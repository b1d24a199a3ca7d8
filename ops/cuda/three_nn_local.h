// The three nearest of a list of points to each of the centres that go with the list.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace cakdp {

// One list of points a row of centers; lists that reach beyond total, and points that do not exist, are ignored.
struct PointLists {
    const int64_t *start, *length, *index;
    int64_t num_lists, total, num_points;
};

// points (num_points, 3), centers (num_lists, per_list, 3) -> distance_squared and nearest (num_lists, per_list, 3),
// nearest first; infinity and -1 where a list has fewer points.
template <typename T>
void three_nn_local_cuda(const T* points, const T* centers, const PointLists& lists, int64_t per_list,
                         T* distance_squared, int64_t* nearest, cudaStream_t stream);

}  // namespace cakdp
