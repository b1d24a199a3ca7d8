// Overlap areas in the bird's-eye view, pairwise and one to one.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "boxes.h"
#include "checks/boxes_overlap_bev.h"
#include "rectangle_overlap.h"

namespace cakdp {
namespace {

constexpr int64_t kPairsPerTask = 1 << 14;

at::Tensor boxes_overlap_bev(const at::Tensor& boxes1, const at::Tensor& boxes2) {
    check_boxes(boxes1, boxes2);
    const int64_t rows = boxes1.size(0), columns = boxes2.size(0);
    at::Tensor overlap = at::empty({rows, columns}, boxes1.options().memory_format(at::MemoryFormat::Contiguous));
    if (overlap.numel() == 0) return overlap;
    AT_DISPATCH_FLOATING_TYPES(boxes1.scalar_type(), "boxes_overlap_bev", [&] {
        const auto first = make_boxes<scalar_t>(boxes1), second = make_boxes<scalar_t>(boxes2);
        scalar_t* out = overlap.mutable_data_ptr<scalar_t>();
        const int64_t rows_per_task = std::max<int64_t>(1, kPairsPerTask / columns);
        at::parallel_for(0, rows, rows_per_task, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i)
                for (int64_t j = 0; j < columns; ++j) out[i * columns + j] = rectangle_overlap(first[i], second[j]);
        });
    });
    return overlap;
}

at::Tensor boxes_overlap_bev_aligned(const at::Tensor& boxes1, const at::Tensor& boxes2) {
    check_box_pairs(boxes1, boxes2);
    at::Tensor overlap = at::empty({boxes1.size(0)}, boxes1.options());
    AT_DISPATCH_FLOATING_TYPES(boxes1.scalar_type(), "boxes_overlap_bev_aligned", [&] {
        const auto first = make_boxes<scalar_t>(boxes1), second = make_boxes<scalar_t>(boxes2);
        scalar_t* out = overlap.mutable_data_ptr<scalar_t>();
        at::parallel_for(0, overlap.size(0), kPairsPerTask, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) out[i] = rectangle_overlap(first[i], second[i]);
        });
    });
    return overlap;
}

}  // namespace

TORCH_LIBRARY_IMPL(cakdp, CPU, m) {
    m.impl("boxes_overlap_bev", boxes_overlap_bev);
    m.impl("boxes_overlap_bev_aligned", boxes_overlap_bev_aligned);
}

}  // namespace cakdp
