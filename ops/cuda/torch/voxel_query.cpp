// The first occupied voxels around each query, on CUDA tensors. Memory grows with the voxels and with the rows of the
// grid, not with its volume, and nothing is read on the host: a voxel outside the grid is not an error, it is not
// found.
#include "voxel_query.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <limits>
#include <tuple>

#include "checks/voxel_query.h"
#include "device.h"

namespace cakdp {
namespace {

// What SortedVoxels points to.
struct Voxels {
    at::Tensor row_begin, x, index, center;
};

template <typename Key, typename T>
Voxels sort_voxels(const at::Tensor& coords, const at::Tensor& xyz, const VoxelGrid& grid, at::ScalarType key_type,
                   cudaStream_t stream) {
    const int64_t count = coords.size(0);
    at::Tensor keys = at::empty({count}, coords.options().dtype(key_type));
    voxel_keys_cuda(coords.const_data_ptr<int64_t>(), grid, count, keys.mutable_data_ptr<Key>(), stream);
    const auto [sorted, index] = at::sort(keys, /*stable=*/true, /*dim=*/0, /*descending=*/false);
    const at::Tensor row_keys = at::arange(grid.rows() + 1, keys.options()).mul_(grid.width);
    at::Tensor x = at::empty({count}, coords.options()), center = at::empty_like(xyz);
    unpack_voxels_cuda(sorted.const_data_ptr<Key>(), index.const_data_ptr<int64_t>(), xyz.const_data_ptr<T>(), grid,
                       count, x.mutable_data_ptr<int64_t>(), center.mutable_data_ptr<T>(), stream);
    return {at::searchsorted(sorted, row_keys), x, index, center};
}

std::tuple<at::Tensor, at::Tensor> voxel_query(const at::Tensor& queries, const at::Tensor& query_xyz,
                                               const at::Tensor& voxel_coords, const at::Tensor& voxel_xyz,
                                               at::IntArrayRef spatial_shape, int64_t batch_size,
                                               at::IntArrayRef ranges, double radius, int64_t num_samples) {
    check_voxel_query(queries, query_xyz, voxel_coords, voxel_xyz, spatial_shape, ranges, num_samples);
    const VoxelGrid grid{batch_size, spatial_shape[0], spatial_shape[1], spatial_shape[2], ranges[0],
                         ranges[1],  ranges[2],        radius,           num_samples};
    const double volume = static_cast<double>(grid.rows()) * static_cast<double>(grid.width);
    TORCH_CHECK_VALUE(volume < 9e18, "the grid has too many voxels, ", volume);
    const CurrentStream stream(queries);
    const at::Tensor cells = queries.contiguous(), positions = query_xyz.contiguous();
    const at::Tensor coords = voxel_coords.contiguous(), centers = voxel_xyz.contiguous();
    at::Tensor index = at::empty({cells.size(0), num_samples}, cells.options());
    at::Tensor empty = at::empty({cells.size(0)}, cells.options().dtype(at::kBool));
    const bool is_narrow = volume < std::numeric_limits<int32_t>::max();
    AT_DISPATCH_FLOATING_TYPES(positions.scalar_type(), "voxel_query", [&] {
        const Voxels sorted = is_narrow ? sort_voxels<int32_t, scalar_t>(coords, centers, grid, at::kInt, stream)
                                        : sort_voxels<int64_t, scalar_t>(coords, centers, grid, at::kLong, stream);
        const SortedVoxels<scalar_t> voxels{sorted.row_begin.const_data_ptr<int64_t>(),
                                            sorted.x.const_data_ptr<int64_t>(), sorted.index.const_data_ptr<int64_t>(),
                                            sorted.center.const_data_ptr<scalar_t>()};
        voxel_query_cuda(cells.const_data_ptr<int64_t>(), positions.const_data_ptr<scalar_t>(), voxels, grid,
                         cells.size(0), index.mutable_data_ptr<int64_t>(), empty.mutable_data_ptr<bool>(), stream);
    });
    return {index, empty};
}

}  // namespace

TORCH_LIBRARY_IMPL(cakdp, CAKDP_DEVICE, m) { m.impl("voxel_query", voxel_query); }

}  // namespace cakdp
