// Overlaps and IoUs of boxes, pairwise and one to one.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace cakdp {

enum class BoxMeasure { kOverlapBev, kIouBev, kIou3d, kNearestIouBev };

// boxes1 (rows, 7), boxes2 (columns, 7) -> out (rows, columns). kNearestIouBev is the same with and without compat.
template <typename T>
void compare_pairwise_cuda(const T* boxes1, const T* boxes2, int64_t rows, int64_t columns, BoxMeasure measure,
                           bool compat, T* out, cudaStream_t stream);

// boxes1 and boxes2 (count, 7) -> out (count,). Not for kNearestIouBev.
template <typename T>
void compare_aligned_cuda(const T* boxes1, const T* boxes2, int64_t count, BoxMeasure measure, bool compat, T* out,
                          cudaStream_t stream);

}  // namespace cakdp
