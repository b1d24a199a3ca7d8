// The three known points of its frame that are nearest to each unknown one, on CUDA tensors.
#include "three_nn.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <tuple>

#include "checks/three_nn.h"
#include "device.h"
#include "frame_starts.h"

namespace cakdp {
namespace {

std::tuple<at::Tensor, at::Tensor> three_nn(const at::Tensor& unknown, const at::Tensor& unknown_counts,
                                            const at::Tensor& known, const at::Tensor& known_counts) {
    check_three_nn(unknown, unknown_counts, known, known_counts);
    const CurrentStream stream(unknown);
    const at::Tensor queries = unknown.contiguous(), points = known.t().contiguous();
    const at::Tensor unknown_starts = frame_starts(unknown_counts, unknown.size(0));
    const at::Tensor known_starts = frame_starts(known_counts, known.size(0));
    const Stacks stacks{known_starts.const_data_ptr<int64_t>(), unknown_starts.const_data_ptr<int64_t>(),
                        known_counts.size(0), known.size(0), unknown.size(0)};
    at::Tensor distances = at::empty({unknown.size(0), 3}, unknown.options());
    at::Tensor index = at::empty({unknown.size(0), 3}, unknown_counts.options());
    AT_DISPATCH_FLOATING_TYPES(unknown.scalar_type(), "three_nn", [&] {
        three_nn_cuda(queries.const_data_ptr<scalar_t>(), points.const_data_ptr<scalar_t>(), stacks,
                      distances.mutable_data_ptr<scalar_t>(), index.mutable_data_ptr<int64_t>(), stream);
    });
    return {distances, index};
}

}  // namespace

TORCH_LIBRARY_IMPL(cakdp, CAKDP_DEVICE, m) { m.impl("three_nn", three_nn); }

}  // namespace cakdp
