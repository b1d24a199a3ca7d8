// Where the frames of a stacked tensor begin, without waiting for the values of the counts.
#pragma once

#include <ATen/ATen.h>

namespace cakdp {

// (B + 1,): never outside the rows, whatever the counts say.
inline at::Tensor cloud_starts(const at::Tensor& counts, int64_t total) {
    return at::constant_pad_nd(counts.cumsum(0), {1, 0}).clamp(0, total);
}

}  // namespace cakdp
