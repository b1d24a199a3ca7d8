// The rows of a tensor of boxes, prepared.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "box.h"

namespace cakdp {

template <typename T>
std::vector<Box<T>> make_boxes(const at::Tensor& boxes, bool axis_aligned = false) {
    const at::Tensor rows = boxes.contiguous();
    const T* numbers = rows.const_data_ptr<T>();
    std::vector<Box<T>> prepared(rows.numel() / kBoxNumbers);
    for (size_t i = 0; i < prepared.size(); ++i) prepared[i] = make_box(numbers + i * kBoxNumbers, axis_aligned);
    return prepared;
}

}  // namespace cakdp
