// Greedy non-maximum suppression of boxes that come best first.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "boxes.h"
#include "rectangle_overlap.h"
#include "tensor_checks.h"

namespace cakdp {
namespace {

constexpr int64_t kBoxesPerTask = 1 << 15;

template <typename T>
bool exceeds(const Box<T>& kept, const Box<T>& other, T iou_threshold) {
    const T overlap = rectangle_overlap(kept, other);
    return overlap > 0 && overlap > iou_threshold * (kept.area() + other.area() - overlap);
}

template <typename T>
std::vector<int64_t> greedy(const std::vector<Box<T>>& boxes, T iou_threshold, size_t limit) {
    const int64_t count = static_cast<int64_t>(boxes.size());
    std::vector<char> suppressed(count, 0);
    std::vector<int64_t> keep;
    for (int64_t i = 0; i < count && keep.size() < limit; ++i) {
        if (suppressed[i]) continue;
        keep.push_back(i);
        at::parallel_for(i + 1, count, kBoxesPerTask, [&](int64_t begin, int64_t end) {
            for (int64_t j = begin; j < end; ++j)
                if (!suppressed[j]) suppressed[j] = exceeds(boxes[i], boxes[j], iou_threshold);
        });
    }
    return keep;
}

at::Tensor nms_sorted(const at::Tensor& boxes, double iou_threshold, bool axis_aligned, int64_t post_max) {
    check_shape(boxes, {-1, kBoxNumbers}, "boxes");
    const size_t limit = static_cast<size_t>(post_max < 0 ? boxes.size(0) : post_max);
    std::vector<int64_t> keep;
    AT_DISPATCH_FLOATING_TYPES(boxes.scalar_type(), "nms_sorted", [&] {
        keep = greedy(make_boxes<scalar_t>(boxes, axis_aligned), static_cast<scalar_t>(iou_threshold), limit);
    });
    at::Tensor positions = at::empty({static_cast<int64_t>(keep.size())}, boxes.options().dtype(at::kLong));
    std::copy(keep.begin(), keep.end(), positions.mutable_data_ptr<int64_t>());
    return positions;
}

}  // namespace

TORCH_LIBRARY_IMPL(cakdp, CPU, m) { m.impl("nms_sorted", nms_sorted); }

}  // namespace cakdp
