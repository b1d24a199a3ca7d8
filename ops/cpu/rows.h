// Rows of features that an index names.
#pragma once

#include <c10/util/Exception.h>

#include <cstdint>

namespace cakdp {

inline int64_t checked_row(int64_t row, int64_t num_rows) {
    TORCH_CHECK_VALUE(row >= 0 && row < num_rows, "index must lie within the ", num_rows, " rows of features, got ",
                      row);
    return row;
}

}  // namespace cakdp
