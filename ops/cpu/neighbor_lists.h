// Lists of rows, one after another: what the kernels for the processor ask of them before they read.
#pragma once

#include <ATen/core/Tensor.h>

#include "tensor_checks.h"

namespace cakdp {

struct NeighborLists {
    at::Tensor start, length, index;

    // Refuses lists that reach beyond index and rows that do not exist.
    NeighborLists(const at::Tensor& starts, const at::Tensor& lengths, const at::Tensor& rows, int64_t num_rows)
        : start(starts.contiguous()), length(lengths.contiguous()), index(rows.contiguous()) {
        for (int64_t i = 0; i < start.size(0); ++i) {
            const int64_t begin = start.const_data_ptr<int64_t>()[i], count = length.const_data_ptr<int64_t>()[i];
            TORCH_CHECK_VALUE(count <= 0 || (begin >= 0 && count <= index.size(0) - begin), "list ", i, " of ", count,
                              " rows from ", begin, " reaches beyond the ", index.size(0), " that there are");
            for (int64_t k = 0; k < count; ++k) check_row(index.const_data_ptr<int64_t>()[begin + k], num_rows);
        }
    }
    int64_t size() const { return start.size(0); }
    const int64_t* begin(int64_t i) const {
        return index.const_data_ptr<int64_t>() + start.const_data_ptr<int64_t>()[i];
    }
    const int64_t* end(int64_t i) const {
        const int64_t count = length.const_data_ptr<int64_t>()[i];
        return begin(i) + (count > 0 ? count : 0);
    }

  private:
    static void check_row(int64_t row, int64_t num_rows) {
        TORCH_CHECK_VALUE(row >= 0 && row < num_rows, "a list holds row ", row, " of ", num_rows);
    }
};

}  // namespace cakdp
