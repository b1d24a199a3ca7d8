// What three_nn refuses on every device.
#pragma once

#include "stacked_checks.h"

namespace cakdp {

inline void check_three_nn(const at::Tensor& unknown, const at::Tensor& unknown_counts, const at::Tensor& known,
                           const at::Tensor& known_counts) {
    check_stacked(unknown, unknown_counts, "unknown", "unknown_counts");
    check_stacked(known, known_counts, "known", "known_counts");
    check_alike({unknown, known}, "unknown and known");
    check_shape(known_counts, {unknown_counts.size(0)}, "known_counts");
}

}  // namespace cakdp
