// Overlaps and IoUs of boxes, pairwise and one to one, on CUDA tensors.
#include "boxes_overlap_bev.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include "checks/boxes_overlap_bev.h"
#include "device.h"

namespace cakdp {
namespace {

template <BoxMeasure measure>
at::Tensor pairwise(const at::Tensor& boxes1, const at::Tensor& boxes2, bool compat) {
    check_boxes(boxes1, boxes2);
    const CurrentStream stream(boxes1);
    const at::Tensor first = boxes1.contiguous(), second = boxes2.contiguous();
    const int64_t rows = boxes1.size(0), columns = boxes2.size(0);
    at::Tensor measured = at::empty({rows, columns}, boxes1.options().memory_format(at::MemoryFormat::Contiguous));
    if (measured.numel() == 0) return measured;
    AT_DISPATCH_FLOATING_TYPES(boxes1.scalar_type(), "compare_pairwise", [&] {
        compare_pairwise_cuda(first.const_data_ptr<scalar_t>(), second.const_data_ptr<scalar_t>(), rows, columns,
                              measure, compat, measured.mutable_data_ptr<scalar_t>(), stream);
    });
    return measured;
}

template <BoxMeasure measure>
at::Tensor aligned(const at::Tensor& boxes1, const at::Tensor& boxes2, bool compat) {
    check_box_pairs(boxes1, boxes2);
    const CurrentStream stream(boxes1);
    const at::Tensor first = boxes1.contiguous(), second = boxes2.contiguous();
    at::Tensor measured = at::empty({boxes1.size(0)}, boxes1.options());
    AT_DISPATCH_FLOATING_TYPES(boxes1.scalar_type(), "compare_aligned", [&] {
        compare_aligned_cuda(first.const_data_ptr<scalar_t>(), second.const_data_ptr<scalar_t>(), boxes1.size(0),
                             measure, compat, measured.mutable_data_ptr<scalar_t>(), stream);
    });
    return measured;
}

at::Tensor nearest_bev_iou(const at::Tensor& boxes1, const at::Tensor& boxes2) {
    return pairwise<BoxMeasure::kNearestIouBev>(boxes1, boxes2, false);
}

}  // namespace

TORCH_LIBRARY_IMPL(cakdp, CAKDP_DEVICE, m) {
    m.impl("boxes_overlap_bev", pairwise<BoxMeasure::kOverlapBev>);
    m.impl("boxes_overlap_bev_aligned", aligned<BoxMeasure::kOverlapBev>);
    m.impl("boxes_iou_bev", pairwise<BoxMeasure::kIouBev>);
    m.impl("boxes_iou_bev_aligned", aligned<BoxMeasure::kIouBev>);
    m.impl("boxes_iou_3d", pairwise<BoxMeasure::kIou3d>);
    m.impl("boxes_iou_3d_aligned", aligned<BoxMeasure::kIou3d>);
    m.impl("nearest_bev_iou", nearest_bev_iou);
}

}  // namespace cakdp
