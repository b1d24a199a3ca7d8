// What the overlaps of boxes refuse on every device.
#pragma once

#include "tensor_checks.h"

namespace cakdp {

inline void check_boxes(const at::Tensor& boxes1, const at::Tensor& boxes2) {
    check_shape(boxes1, {-1, 7}, "boxes1");
    check_shape(boxes2, {-1, 7}, "boxes2");
    check_alike({boxes1, boxes2}, "boxes1 and boxes2");
}

inline void check_box_pairs(const at::Tensor& boxes1, const at::Tensor& boxes2) {
    check_boxes(boxes1, boxes2);
    TORCH_CHECK_VALUE(boxes1.size(0) == boxes2.size(0), "aligned boxes come in pairs, got ", boxes1.size(0), " and ",
                      boxes2.size(0));
}

}  // namespace cakdp
