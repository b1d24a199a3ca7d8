// The first occupied voxels around each query. The occupied voxels are kept row by row along x, each row sorted, so a
// query reads only what is there and memory grows with the rows of the grid, not with its volume.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>

#include "checks/voxel_query.h"
#include "voxel_grid.h"

namespace cakdp {
namespace {

constexpr int64_t kQueriesPerTask = 64;

using Entry = std::pair<int64_t, int64_t>;  // x, index of the voxel

class VoxelRows {
  public:
    VoxelRows(const int64_t* coords, int64_t count, const VoxelGrid& grid)
        : grid_(grid), begin_(grid.rows() + 1, 0), entries_(count) {
        for (int64_t i = 0; i < count; ++i) ++begin_[row_of(coords + 4 * i) + 1];
        for (size_t row = 1; row < begin_.size(); ++row) begin_[row] += begin_[row - 1];
        std::vector<int64_t> next(begin_.begin(), begin_.end() - 1);
        for (int64_t i = 0; i < count; ++i) entries_[next[row_of(coords + 4 * i)]++] = {coords[4 * i + 3], i};
        for (size_t row = 1; row < begin_.size(); ++row)
            std::sort(entries_.begin() + begin_[row - 1], entries_.begin() + begin_[row]);
    }

    // Calls visit(index) for the voxels of a row with x_low <= x <= x_high, in that order, until it returns false.
    template <typename Visit>
    bool visit_row(int64_t batch, int64_t z, int64_t y, int64_t x_low, int64_t x_high, const Visit& visit) const {
        const int64_t row = grid_.row(batch, z, y);
        const auto row_end = entries_.begin() + begin_[row + 1];
        auto entry = std::lower_bound(entries_.begin() + begin_[row], row_end, Entry{x_low, 0});
        for (int64_t last = x_low - 1; entry != row_end && entry->first <= x_high; ++entry) {
            const bool repeated = entry->first == last;
            last = entry->first;
            if (!repeated && !visit(entry->second)) return false;
        }
        return true;
    }

  private:
    int64_t row_of(const int64_t* coord) const {
        TORCH_CHECK_VALUE(grid_.holds(coord), "voxel_coords hold (", coord[0], ", ", coord[1], ", ", coord[2], ", ",
                          coord[3], "), outside the grid");
        return grid_.row(coord[0], coord[1], coord[2]);
    }

    VoxelGrid grid_;
    std::vector<int64_t> begin_;
    std::vector<Entry> entries_;
};

// Fills one row of the answer and returns how many voxels were found.
template <typename T>
int64_t find_neighbours(const VoxelRows& rows, const int64_t* query, const T* position, const T* voxel_xyz,
                        const VoxelGrid& grid, int64_t* out) {
    const T radius_squared = static_cast<T>(grid.radius * grid.radius);
    int64_t found = 0;
    const auto take = [&](int64_t voxel) {
        const T* center = voxel_xyz + 3 * voxel;
        const T x = position[0] - center[0], y = position[1] - center[1], z = position[2] - center[2];
        if (x * x + y * y + z * z <= radius_squared) out[found++] = voxel;
        return found < grid.num_samples;
    };
    if (query[0] < 0 || query[0] >= grid.batch_size) return 0;
    const int64_t z_low = std::max<int64_t>(0, query[1] - grid.range_z);
    const int64_t z_high = std::min(grid.depth - 1, query[1] + grid.range_z);
    const int64_t y_low = std::max<int64_t>(0, query[2] - grid.range_y);
    const int64_t y_high = std::min(grid.height - 1, query[2] + grid.range_y);
    const int64_t x_low = query[3] - grid.range_x, x_high = query[3] + grid.range_x;
    for (int64_t z = z_low; z <= z_high; ++z)
        for (int64_t y = y_low; y <= y_high; ++y)
            if (!rows.visit_row(query[0], z, y, x_low, x_high, take)) return found;
    return found;
}

std::tuple<at::Tensor, at::Tensor> voxel_query(const at::Tensor& queries, const at::Tensor& query_xyz,
                                               const at::Tensor& voxel_coords, const at::Tensor& voxel_xyz,
                                               at::IntArrayRef spatial_shape, int64_t batch_size,
                                               at::IntArrayRef ranges, double radius, int64_t num_samples) {
    check_voxel_query(queries, query_xyz, voxel_coords, voxel_xyz, spatial_shape, ranges, num_samples);
    const VoxelGrid grid{batch_size, spatial_shape[0], spatial_shape[1], spatial_shape[2], ranges[0],
                         ranges[1],  ranges[2],        radius,           num_samples};
    const int64_t count = queries.size(0);
    at::Tensor index = at::zeros({count, num_samples}, queries.options());
    at::Tensor empty = at::ones({count}, queries.options().dtype(at::kBool));
    const at::Tensor cells = queries.contiguous(), positions = query_xyz.contiguous();
    const at::Tensor coords = voxel_coords.contiguous(), centers = voxel_xyz.contiguous();
    const VoxelRows rows(coords.const_data_ptr<int64_t>(), coords.size(0), grid);
    AT_DISPATCH_FLOATING_TYPES(positions.scalar_type(), "voxel_query", [&] {
        const int64_t* cell = cells.const_data_ptr<int64_t>();
        const scalar_t* position = positions.const_data_ptr<scalar_t>();
        const scalar_t* center = centers.const_data_ptr<scalar_t>();
        int64_t* out = index.mutable_data_ptr<int64_t>();
        bool* none = empty.mutable_data_ptr<bool>();
        at::parallel_for(0, count, kQueriesPerTask, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                int64_t* row = out + i * num_samples;
                const int64_t found = find_neighbours(rows, cell + 4 * i, position + 3 * i, center, grid, row);
                none[i] = found == 0;
                if (found > 0) std::fill(row + found, row + num_samples, row[0]);
            }
        });
    });
    return {index, empty};
}

}  // namespace

TORCH_LIBRARY_IMPL(cakdp, CPU, m) { m.impl("voxel_query", voxel_query); }

}  // namespace cakdp
