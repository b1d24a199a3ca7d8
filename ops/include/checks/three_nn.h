// What three_nn refuses on every device.
#pragma once

#include "stacked_checks.h"

namespace cakdp {

inline void check_three_nn(const at::Tensor& unknown, const at::Tensor& unknown_counts, const at::Tensor& known,
                           const at::Tensor& known_counts) {
    check_stacks({unknown, unknown_counts, "unknown", "unknown_counts"},
                 {known, known_counts, "known", "known_counts"});
}

}  // namespace cakdp
