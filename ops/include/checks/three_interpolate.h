// What three_interpolate and its gradient refuse on every device.
#pragma once

#include "tensor_checks.h"

namespace cakdp {

inline void check_three_interpolate(const at::Tensor& features, const at::Tensor& index, const at::Tensor& weights) {
    check_shape(features, {-1, -1}, "features");
    check_shape(index, {-1, 3}, "index");
    check_shape(weights, {index.size(0), 3}, "weights");
    check_dtype(index, at::kLong, "index");
    check_alike({features, weights}, "features and weights");
    check_alike({features, index}, "features and index", false);
}

inline void check_three_interpolate_backward(const at::Tensor& grad, const at::Tensor& index, const at::Tensor& weights,
                                             int64_t num_rows) {
    check_three_interpolate(grad, index, weights);
    check_shape(grad, {index.size(0), -1}, "grad");
    TORCH_CHECK_VALUE(num_rows >= 0, "num_rows must be at least 0, got ", num_rows);
}

}  // namespace cakdp
