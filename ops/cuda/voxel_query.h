// The first occupied voxels around each query.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "voxel_grid.h"

namespace cakdp {

// The occupied voxels, row after row and each row along x: where each row begins (rows() + 1), and of each voxel its x,
// its index and its centre.
template <typename T>
struct SortedVoxels {
    const int64_t *row_begin, *x, *index;
    const T* center;
};

// keys (count): the place of each voxel in the grid, the number of all places for one outside. Key is 32 or 64 bits.
template <typename Key>
void voxel_keys_cuda(const int64_t* coords, const VoxelGrid& grid, int64_t count, Key* keys, cudaStream_t stream);

// x and center of the voxels in the order of their sorted keys.
template <typename Key, typename T>
void unpack_voxels_cuda(const Key* keys, const int64_t* index, const T* xyz, const VoxelGrid& grid, int64_t count,
                        int64_t* x, T* center, cudaStream_t stream);

// queries (count, 4), positions (count, 3) -> index (count, num_samples), empty (count).
template <typename T>
void voxel_query_cuda(const int64_t* queries, const T* positions, const SortedVoxels<T>& voxels, const VoxelGrid& grid,
                      int64_t count, int64_t* index, bool* empty, cudaStream_t stream);

}  // namespace cakdp
