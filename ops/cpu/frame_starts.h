// Where the frames of a stacked tensor begin.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <vector>

#include "frames.h"

namespace cakdp {

// Where each frame begins and the last one ends: one number more than counts, which must add up to total.
inline std::vector<int64_t> frame_starts(const at::Tensor& counts, int64_t total, const char* name) {
    const at::Tensor values = counts.contiguous();
    std::vector<int64_t> starts{0};
    for (int64_t i = 0; i < values.numel(); ++i) {
        const int64_t count = values.const_data_ptr<int64_t>()[i];
        TORCH_CHECK_VALUE(count >= 0 && count <= total - starts.back(), name, " must add up to ", total,
                          " rows and hold no number below 0, got ", count, " at ", i);
        starts.push_back(starts.back() + count);
    }
    TORCH_CHECK_VALUE(starts.back() == total, name, " must add up to ", total, " rows, got ", starts.back());
    return starts;
}

// The frame of a row below the last start.
inline int64_t frame_of(const std::vector<int64_t>& starts, int64_t row) {
    return frame_of(starts.data(), static_cast<int64_t>(starts.size()) - 1, row);
}

}  // namespace cakdp
