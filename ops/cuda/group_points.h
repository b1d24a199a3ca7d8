// The features of the points in each group, and their gradient.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace cakdp {

// Which rows of features (num_rows, channels) go together: index (groups, samples); empty (groups,) or null.
struct Groups {
    const int64_t* index;
    const bool* empty;
    int64_t num_rows, channels, groups, samples;
};

// -> grouped (groups, channels, samples): 0 for empty groups, NaN for an index that is no row.
template <typename T>
void group_points_cuda(const T* features, const Groups& groups, T* grouped, cudaStream_t stream);

// grad (groups, channels, samples) is added to total (num_rows, channels).
template <typename T>
void group_points_backward_cuda(const T* grad, const Groups& groups, T* total, cudaStream_t stream);

}  // namespace cakdp
