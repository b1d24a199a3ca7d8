// What ball_query refuses on every device.
#pragma once

#include "stacked_checks.h"

namespace cakdp {

inline void check_ball_query(const at::Tensor& xyz, const at::Tensor& counts, const at::Tensor& new_xyz,
                             const at::Tensor& new_counts, at::ArrayRef<double> radii, at::IntArrayRef num_samples) {
    check_stacks({xyz, counts, "xyz", "counts"}, {new_xyz, new_counts, "new_xyz", "new_counts"});
    TORCH_CHECK_VALUE(!radii.empty() && radii.size() == num_samples.size(),
                      "ball_query needs as many num_samples as radii, at least one, got ", num_samples.size(), " and ",
                      radii.size());
    for (const int64_t number : num_samples)
        TORCH_CHECK_VALUE(number >= 1, "num_samples must be at least 1, got ", number);
}

}  // namespace cakdp
