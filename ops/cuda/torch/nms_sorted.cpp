// Greedy non-maximum suppression of boxes that come best first within each group, on CUDA tensors.
#include "nms_sorted.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include "checks/nms_sorted.h"
#include "device.h"

namespace cakdp {
namespace {

at::Tensor nms_sorted(const at::Tensor& boxes, const std::optional<at::Tensor>& groups, double iou_threshold,
                      bool axis_aligned, bool compat, int64_t pre_max, int64_t post_max) {
    check_nms(boxes, groups);
    const CurrentStream stream(boxes);
    const int64_t count = boxes.size(0);
    if (count == 0) return at::empty({0}, boxes.options().dtype(at::kLong));
    const NmsRule rule{iou_threshold, axis_aligned, compat, limit_or_all(pre_max, boxes),
                       limit_or_all(post_max, boxes)};
    const at::Tensor rows = boxes.contiguous(), ids = groups ? groups->contiguous() : at::Tensor();
    const int64_t* id = groups ? ids.const_data_ptr<int64_t>() : nullptr;
    at::Tensor stays = at::empty({count}, boxes.options().dtype(at::kBool));
    AT_DISPATCH_FLOATING_TYPES(boxes.scalar_type(), "nms_sorted", [&] {
        const int64_t bytes = nms_workspace_bytes<scalar_t>(count, id != nullptr);
        const at::Tensor workspace = at::empty({bytes}, boxes.options().dtype(at::kByte));
        nms_sorted_cuda(rows.const_data_ptr<scalar_t>(), id, count, rule, workspace.mutable_data_ptr(),
                        stays.mutable_data_ptr<bool>(), stream);
    });
    return stays.nonzero().squeeze(1);  // which waits for the device, once, to learn how many there are
}

}  // namespace

TORCH_LIBRARY_IMPL(cakdp, CAKDP_DEVICE, m) { m.impl("nms_sorted", nms_sorted); }

}  // namespace cakdp
