// The three known points of its frame that are nearest to each unknown one.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "frames.h"

namespace cakdp {

// unknown (num_queries, 3) asks for known (3, num_points), one axis after another -> distances and index (num_queries,
// 3).
template <typename T>
void three_nn_cuda(const T* unknown, const T* known, const Stacks& stacks, T* distances, int64_t* index,
                   cudaStream_t stream);

}  // namespace cakdp
