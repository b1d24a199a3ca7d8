// What voxel_query refuses on every device.
#pragma once

#include "tensor_checks.h"

namespace cakdp {

inline void check_voxel_query(const at::Tensor& queries, const at::Tensor& query_xyz, const at::Tensor& voxel_coords,
                              const at::Tensor& voxel_xyz, at::IntArrayRef spatial_shape, at::IntArrayRef ranges,
                              int64_t num_samples) {
    check_shape(queries, {-1, 4}, "queries");
    check_shape(query_xyz, {queries.size(0), 3}, "query_xyz");
    check_shape(voxel_coords, {-1, 4}, "voxel_coords");
    check_shape(voxel_xyz, {voxel_coords.size(0), 3}, "voxel_xyz");
    check_dtype(queries, at::kLong, "queries");
    check_dtype(voxel_coords, at::kLong, "voxel_coords");
    check_alike({query_xyz, voxel_xyz}, "query_xyz and voxel_xyz");
    check_alike({queries, voxel_coords, query_xyz}, "queries, voxel_coords and query_xyz", false);
    TORCH_CHECK_VALUE(num_samples >= 1 && spatial_shape.size() == 3 && ranges.size() == 3,
                      "voxel_query needs three sizes, three ranges and at least one sample");
}

}  // namespace cakdp
