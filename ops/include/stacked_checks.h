// What ops on frames that lie one after another in one tensor refuse on every device.
#pragma once

#include "tensor_checks.h"

namespace cakdp {

// Points (N, 3) and how many of them belong to each frame (B,).
inline void check_stacked(const at::Tensor& xyz, const at::Tensor& counts, const char* name, const char* counts_name) {
    check_shape(xyz, {-1, 3}, name);
    check_shape(counts, {-1}, counts_name);
    check_dtype(counts, at::kLong, counts_name);
    TORCH_CHECK_VALUE(xyz.device() == counts.device(), name, " and ", counts_name, " must be on one device, got ",
                      xyz.device(), " and ", counts.device());
}

}  // namespace cakdp
