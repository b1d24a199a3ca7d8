// What the searches for the points of regions refuse on every device, and what they give when asked for them.
#pragma once

#include "tensor_checks.h"

namespace cakdp {

inline void check_stacks(const at::Tensor& points, const at::Tensor& point_counts, const at::Tensor& regions,
                         const at::Tensor& region_counts, int64_t numbers, const char* name) {
    check_shape(points, {-1, 3}, "points");
    check_shape(regions, {-1, numbers}, name);
    check_shape(point_counts, {-1}, "point_counts");
    check_shape(region_counts, {point_counts.size(0)}, "region_counts");
    check_dtype(point_counts, at::kLong, "point_counts");
    check_dtype(region_counts, at::kLong, "region_counts");
    check_alike({points, regions}, "points and regions");
    check_alike({points, point_counts, region_counts}, "points and counts", false);
}

// Lists of neighbours, one a region: where each starts in index, and how long it is.
inline void check_neighbors(const at::Tensor& start, const at::Tensor& length, const at::Tensor& index,
                            int64_t num_regions) {
    check_shape(start, {num_regions}, "start");
    check_shape(length, {num_regions}, "length");
    check_shape(index, {-1}, "index");
    for (const at::Tensor& tensor : {start, length, index}) check_dtype(tensor, at::kLong, "start, length and index");
    check_alike({start, length, index}, "start, length and index");
}

}  // namespace cakdp
