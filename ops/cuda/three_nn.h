// The three known points of its frame that are nearest to each unknown one.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace cakdp {

// unknown (num_unknown, 3); known (3, num_known), one axis after another; starts (clouds + 1,), where the points of
// each frame begin -> distances and index (num_unknown, 3).
template <typename T>
void three_nn_cuda(const T* unknown, const int64_t* unknown_starts, const T* known, const int64_t* known_starts,
                   int64_t num_unknown, int64_t num_known, int64_t clouds, T* distances, int64_t* index,
                   cudaStream_t stream);

}  // namespace cakdp
