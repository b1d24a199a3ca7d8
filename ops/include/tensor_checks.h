// What the kernels refuse; the Python faces refuse the same with friendlier words.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <initializer_list>

namespace cakdp {

// A negative size stands for any.
inline void check_shape(const at::Tensor& tensor, std::initializer_list<int64_t> shape, const char* name) {
    bool same = tensor.dim() == static_cast<int64_t>(shape.size());
    int64_t axis = 0;
    for (const int64_t size : shape) {
        same = same && (size < 0 || tensor.size(axis) == size);
        ++axis;
    }
    TORCH_CHECK_VALUE(same, name, " must have shape ", at::IntArrayRef(shape), " with -1 for any, got ",
                      tensor.sizes());
}

// Tensors of one device and, where same_dtype, of one dtype; names is how an error calls them.
inline void check_alike(std::initializer_list<at::Tensor> tensors, const char* names, bool same_dtype = true) {
    const at::Tensor& first = *tensors.begin();
    for (const at::Tensor& tensor : tensors) {
        TORCH_CHECK_VALUE(tensor.device() == first.device(), names, " must be on one device, got ", first.device(),
                          " and ", tensor.device());
        TORCH_CHECK_VALUE(!same_dtype || tensor.scalar_type() == first.scalar_type(), names,
                          " must share a dtype, got ", first.scalar_type(), " and ", tensor.scalar_type());
    }
}

inline void check_dtype(const at::Tensor& tensor, at::ScalarType dtype, const char* name) {
    TORCH_CHECK_VALUE(tensor.scalar_type() == dtype, name, " must be ", dtype, ", got ", tensor.scalar_type());
}

}  // namespace cakdp
