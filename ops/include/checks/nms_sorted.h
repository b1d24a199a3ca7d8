// What nms_sorted refuses on every device.
#pragma once

#include <optional>

#include "tensor_checks.h"

namespace cakdp {

inline void check_nms(const at::Tensor& boxes, const std::optional<at::Tensor>& groups) {
    check_shape(boxes, {-1, 7}, "boxes");
    if (!groups) return;
    check_shape(*groups, {boxes.size(0)}, "groups");
    check_dtype(*groups, at::kLong, "groups");
    check_alike({boxes, *groups}, "boxes and groups", false);
}

// A limit on boxes of a group; a negative one stands for none.
inline int64_t limit_or_all(int64_t limit, const at::Tensor& boxes) {
    return limit < 0 ? boxes.size(0) : std::min(limit, boxes.size(0));
}

}  // namespace cakdp
