// Points of each cloud, each the farthest from all that were chosen before it.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace cakdp {

constexpr int64_t kMaxClouds = (int64_t{1} << 17) - 1;  // a key has room for no more

// Numbers that sort points (num_points, 3) by cloud and along a space-filling curve; the non-finite ones of a cloud
// come last. low and high (3,) bound all finite points; starts (clouds + 1,) is where the points of each cloud begin.
template <typename T>
void curve_keys_cuda(const T* xyz, const T* low, const T* high, const int64_t* starts, int64_t num_points,
                     int64_t clouds, int64_t* keys, cudaStream_t stream);

// xyz (3, num_points), one axis after another, sorted by keys; rows, where each point was before; first_sample
// (clouds + 1,) -> chosen, rows of the unsorted points; nearest (num_points,) is for the kernel's use. No cloud is
// looked at by more than one block.
template <typename T>
void farthest_point_sampling_cuda(const T* xyz, const int64_t* rows, const int64_t* keys, const int64_t* starts,
                                  const int64_t* first_sample, int64_t num_points, int64_t clouds, T* nearest,
                                  int64_t* chosen, cudaStream_t stream);

}  // namespace cakdp
