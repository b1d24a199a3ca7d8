// What the searches for the points of regions refuse on every device, and what they give when asked for them.
#pragma once

#include "stacked_checks.h"

namespace cakdp {

inline void check_neighbors_in_boxes(const at::Tensor& points, const at::Tensor& point_counts, const at::Tensor& boxes,
                                     const at::Tensor& box_counts) {
    check_stacks({points, point_counts, "points", "point_counts"}, {boxes, box_counts, "boxes", "box_counts", 7});
}

inline void check_neighbors_in_balls(const at::Tensor& points, const at::Tensor& point_counts,
                                     const at::Tensor& centers, const at::Tensor& center_counts) {
    check_stacks({points, point_counts, "points", "point_counts"},
                 {centers, center_counts, "centers", "center_counts"});
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
