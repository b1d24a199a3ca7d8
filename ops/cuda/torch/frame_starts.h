// Where the frames of a stacked tensor begin, without waiting for the values of the counts.
#pragma once

#include <ATen/ATen.h>

namespace cakdp {

// (B + 1,): in ascending order and never outside the rows, whatever the counts say; one below 0 stands for 0.
inline at::Tensor frame_starts(const at::Tensor& counts, int64_t total) {
    return at::constant_pad_nd(counts.clamp(0, total).cumsum(0), {1, 0}).clamp_max(total);
}

}  // namespace cakdp
