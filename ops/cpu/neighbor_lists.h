// Lists of rows, one after another: what the kernels for the processor ask of them before they read.
#pragma once

#include <ATen/core/Tensor.h>

#include "tensor_checks.h"

namespace cakdp {

class NeighborLists {
  public:
    // Refuses lists that reach beyond index and rows that do not exist.
    NeighborLists(const at::Tensor& start, const at::Tensor& length, const at::Tensor& index, int64_t num_rows)
        : tensors_{start.contiguous(), length.contiguous(), index.contiguous()},
          start_(tensors_[0].const_data_ptr<int64_t>()),
          length_(tensors_[1].const_data_ptr<int64_t>()),
          index_(tensors_[2].const_data_ptr<int64_t>()) {
        for (int64_t i = 0; i < size(); ++i) {
            TORCH_CHECK_VALUE(length_[i] <= 0 || (start_[i] >= 0 && length_[i] <= index.size(0) - start_[i]),
                              "a list reaches beyond the ", index.size(0), " rows that there are");
            for (const int64_t* row = begin(i); row < end(i); ++row)
                TORCH_CHECK_VALUE(0 <= *row && *row < num_rows, "a list holds row ", *row, " of ", num_rows);
        }
    }
    int64_t size() const { return tensors_[0].size(0); }
    int64_t length(int64_t i) const { return length_[i] > 0 ? length_[i] : 0; }
    const int64_t* begin(int64_t i) const { return index_ + start_[i]; }
    const int64_t* end(int64_t i) const { return begin(i) + length(i); }

  private:
    at::Tensor tensors_[3];
    const int64_t *start_, *length_, *index_;
};

}  // namespace cakdp
