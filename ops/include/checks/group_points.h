// What group_points and its gradient refuse on every device.
#pragma once

#include <optional>

#include "tensor_checks.h"

namespace cakdp {

inline void check_groups(const at::Tensor& index, const std::optional<at::Tensor>& empty, const at::Tensor& values) {
    check_shape(index, {-1, -1}, "index");
    check_dtype(index, at::kLong, "index");
    check_alike({index, values}, "index and features", false);
    if (!empty) return;
    check_shape(*empty, {index.size(0)}, "empty");
    check_dtype(*empty, at::kBool, "empty");
    check_alike({index, *empty}, "index and empty", false);
}

inline void check_group_points(const at::Tensor& features, const at::Tensor& index,
                               const std::optional<at::Tensor>& empty) {
    check_shape(features, {-1, -1}, "features");
    check_groups(index, empty, features);
}

inline void check_group_points_backward(const at::Tensor& grad, const at::Tensor& index,
                                        const std::optional<at::Tensor>& empty, int64_t num_rows) {
    check_groups(index, empty, grad);
    check_shape(grad, {index.size(0), -1, index.size(1)}, "grad");
    TORCH_CHECK_VALUE(num_rows >= 0, "num_rows must be at least 0, got ", num_rows);
}

}  // namespace cakdp
