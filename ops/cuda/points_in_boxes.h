// The first box of its frame that holds each point.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace cakdp {

// points (frames, num_points, 3), boxes (frames, num_boxes, 7) -> holder (frames, num_points), -1 for none.
template <typename T>
void points_in_boxes_cuda(const T* points, const T* boxes, int64_t frames, int64_t num_points, int64_t num_boxes,
                          int64_t* holder, cudaStream_t stream);

}  // namespace cakdp
