// What points_in_boxes refuses on every device.
#pragma once

#include "tensor_checks.h"

namespace cakdp {

inline void check_points_and_boxes(const at::Tensor& points, const at::Tensor& boxes) {
    check_shape(points, {-1, -1, 3}, "points");
    check_shape(boxes, {points.size(0), -1, 7}, "boxes");
    check_alike({points, boxes}, "points and boxes");
}

}  // namespace cakdp
