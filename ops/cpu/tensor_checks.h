// What the CPU kernels refuse; the Python faces refuse the same with friendlier words.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <vector>

#include "box.h"

namespace cakdp {

inline void check_rows(const at::Tensor& tensor, int64_t columns, const char* name) {
    TORCH_CHECK_VALUE(tensor.dim() == 2 && tensor.size(1) == columns, name, " must have shape (any, ", columns,
                      "), got ", tensor.sizes());
    TORCH_CHECK_VALUE(tensor.is_cpu(), name, " must be on the CPU, got ", tensor.device());
}

inline void check_same_dtype(const at::Tensor& first, const at::Tensor& second, const char* names) {
    TORCH_CHECK_VALUE(first.scalar_type() == second.scalar_type(), names, " must share a dtype, got ",
                      first.scalar_type(), " and ", second.scalar_type());
}

template <typename T>
std::vector<Box<T>> make_boxes(const at::Tensor& boxes, bool axis_aligned = false) {
    const at::Tensor rows = boxes.contiguous();
    const T* numbers = rows.const_data_ptr<T>();
    std::vector<Box<T>> prepared(rows.size(0));
    for (size_t i = 0; i < prepared.size(); ++i) prepared[i] = make_box(numbers + i * kBoxNumbers, axis_aligned);
    return prepared;
}

}  // namespace cakdp
