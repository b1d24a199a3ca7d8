// The points of its own frame that each region holds, as lists one after another.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "checks/neighbors.h"
#include "frame_starts.h"
#include "point_slabs.h"
#include "regions.h"

namespace cakdp {
namespace {

constexpr int64_t kRegionsPerTask = 64;

using Lists = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

template <typename T, typename Region>
PointSlabs<T> slabs_of_frame(const T* points, Rows rows, const std::vector<Region>& regions, Rows own) {
    double reach = 0;
    int64_t count = 0;
    for (int64_t i = own.begin; i < own.end; ++i)
        if (!regions[i].is_empty() && is_finite(regions[i].reach_y())) reach += regions[i].reach_y(), ++count;
    return PointSlabs<T>(points, rows, reach > 0 ? reach / count / 2 : 1.0);
}

// Appends the points that a region holds, by their row, at most so many.
template <typename T, typename Region>
void append_points(const PointSlabs<T>& slabs, const Region& region, int64_t max_points, std::vector<int64_t>& found) {
    if (region.is_empty()) return;
    const size_t begin = found.size();
    slabs.visit_near(region.x(), region.y(), region.reach_x(), region.reach_y(), [&](const auto& point) {
        if (region.holds(point.x, point.y, point.z)) found.push_back(point.row);
    });
    std::sort(found.begin() + begin, found.end());
    if (max_points >= 0) found.resize(std::min(found.size(), begin + static_cast<size_t>(max_points)));
}

Lists concatenate(const std::vector<std::vector<int64_t>>& found, const at::Tensor& length) {
    const at::Tensor start = length.cumsum(0) - length;
    int64_t total = 0;
    for (const auto& rows : found) total += rows.size();
    at::Tensor index = at::empty({total}, length.options());
    int64_t* out = index.mutable_data_ptr<int64_t>();
    for (const auto& rows : found) out = std::copy(rows.begin(), rows.end(), out);
    return {start, length, index};
}

template <typename T, typename Region>
Lists find_neighbors(const at::Tensor& points, const std::vector<int64_t>& point_starts, const at::Tensor& numbers,
                     const std::vector<int64_t>& region_starts, T radius_squared, int64_t max_points) {
    const at::Tensor positions = points.contiguous(), rows = numbers.contiguous();
    const T* xyz = positions.const_data_ptr<T>();
    const int64_t num_regions = rows.size(0);
    std::vector<Region> regions;
    regions.reserve(num_regions);
    for (int64_t i = 0; i < num_regions; ++i)
        regions.emplace_back(rows.const_data_ptr<T>() + Region::kNumbers * i, radius_squared);
    std::vector<PointSlabs<T>> slabs;
    for (size_t frame = 0; frame + 1 < point_starts.size(); ++frame)
        slabs.push_back(slabs_of_frame(xyz, {point_starts[frame], point_starts[frame + 1]}, regions,
                                       {region_starts[frame], region_starts[frame + 1]}));
    at::Tensor length = at::zeros({num_regions}, points.options().dtype(at::kLong));
    int64_t* lengths = length.mutable_data_ptr<int64_t>();
    std::vector<std::vector<int64_t>> found((num_regions + kRegionsPerTask - 1) / kRegionsPerTask);
    at::parallel_for(0, found.size(), 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin * kRegionsPerTask; i < std::min(num_regions, end * kRegionsPerTask); ++i) {
            std::vector<int64_t>& mine = found[i / kRegionsPerTask];
            const size_t before = mine.size();
            append_points(slabs[frame_of(region_starts, i)], regions[i], max_points, mine);
            lengths[i] = mine.size() - before;
        }
    });
    return concatenate(found, length);
}

Lists neighbors_in_boxes(const at::Tensor& points, const at::Tensor& point_counts, const at::Tensor& boxes,
                         const at::Tensor& box_counts, int64_t max_points) {
    check_neighbors_in_boxes(points, point_counts, boxes, box_counts);
    const auto point_starts = frame_starts(point_counts, points.size(0), "point_counts");
    const auto box_starts = frame_starts(box_counts, boxes.size(0), "box_counts");
    return AT_DISPATCH_FLOATING_TYPES(points.scalar_type(), "neighbors_in_boxes", [&] {
        return find_neighbors<scalar_t, BoxRegion<scalar_t>>(points, point_starts, boxes, box_starts, 0, max_points);
    });
}

Lists neighbors_in_balls(const at::Tensor& points, const at::Tensor& point_counts, const at::Tensor& centers,
                         const at::Tensor& center_counts, double radius, int64_t max_points) {
    check_neighbors_in_balls(points, point_counts, centers, center_counts);
    const auto point_starts = frame_starts(point_counts, points.size(0), "point_counts");
    const auto center_starts = frame_starts(center_counts, centers.size(0), "center_counts");
    return AT_DISPATCH_FLOATING_TYPES(points.scalar_type(), "neighbors_in_balls", [&] {
        const auto radius_squared = static_cast<scalar_t>(radius * radius);
        return find_neighbors<scalar_t, BallRegion<scalar_t>>(points, point_starts, centers, center_starts,
                                                              radius_squared, max_points);
    });
}

}  // namespace

TORCH_LIBRARY_IMPL(cakdp, CPU, m) {
    m.impl("neighbors_in_boxes", neighbors_in_boxes);
    m.impl("neighbors_in_balls", neighbors_in_balls);
}

}  // namespace cakdp
