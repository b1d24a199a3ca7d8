// The weighted features of three points for each row, and their gradient.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace cakdp {

// features (num_rows, channels), index and weights (count, 3) -> mixed (count, channels); NaN for an index that is no
// row.
template <typename T>
void three_interpolate_cuda(const T* features, const int64_t* index, const T* weights, int64_t num_rows,
                            int64_t channels, int64_t count, T* mixed, cudaStream_t stream);

// grad (count, channels) is added to total (num_rows, channels).
template <typename T>
void three_interpolate_backward_cuda(const T* grad, const int64_t* index, const T* weights, int64_t num_rows,
                                     int64_t channels, int64_t count, T* total, cudaStream_t stream);

}  // namespace cakdp
