// The grid in which neighbouring voxels are looked for, as rows of voxels along x.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace cakdp {

struct VoxelGrid {
    int64_t batch_size, depth, height, width;
    int64_t range_z, range_y, range_x;  // voxels to either side
    double radius;
    int64_t num_samples;

    CAKDP_HOST_DEVICE int64_t rows() const { return batch_size * depth * height; }
    CAKDP_HOST_DEVICE int64_t row(int64_t batch, int64_t z, int64_t y) const {
        return (batch * depth + z) * height + y;
    }
    // Whether a voxel (batch, z, y, x) lies in the grid.
    CAKDP_HOST_DEVICE bool holds(const int64_t* voxel) const {
        return 0 <= voxel[0] && voxel[0] < batch_size && 0 <= voxel[1] && voxel[1] < depth && 0 <= voxel[2] &&
               voxel[2] < height && 0 <= voxel[3] && voxel[3] < width;
    }
};

}  // namespace cakdp
