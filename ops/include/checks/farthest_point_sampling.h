// What farthest_point_sampling refuses on every device.
#pragma once

#include "stacked_checks.h"

namespace cakdp {

inline void check_farthest_point_sampling(const at::Tensor& xyz, const at::Tensor& counts,
                                          at::IntArrayRef num_samples) {
    check_stack({xyz, counts, "xyz", "counts"});
    TORCH_CHECK_VALUE(static_cast<int64_t>(num_samples.size()) == counts.size(0),
                      "num_samples must be one number a "
                      "cloud, got ",
                      num_samples.size(), " for ", counts.size(0), " clouds");
    for (const int64_t number : num_samples)
        TORCH_CHECK_VALUE(number >= 0, "num_samples must be at least 0, got ", number);
}

}  // namespace cakdp
