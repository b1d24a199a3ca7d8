// The first box of its frame that holds each point.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "boxes.h"
#include "checks/points_in_boxes.h"

namespace cakdp {
namespace {

constexpr int64_t kPairsPerTask = 1 << 15;

template <typename T>
int64_t first_holder(const Box<T>* boxes, int64_t num_boxes, const T* point) {
    for (int64_t j = 0; j < num_boxes; ++j)
        if (boxes[j].holds(point[0], point[1], point[2])) return j;
    return -1;
}

at::Tensor points_in_boxes(const at::Tensor& points, const at::Tensor& boxes) {
    check_points_and_boxes(points, boxes);
    const int64_t num_points = points.size(1), num_boxes = boxes.size(1);
    const at::Tensor positions = points.contiguous();
    at::Tensor holder = at::empty({points.size(0), num_points}, points.options().dtype(at::kLong));
    AT_DISPATCH_FLOATING_TYPES(points.scalar_type(), "points_in_boxes", [&] {
        const auto prepared = make_boxes<scalar_t>(boxes);
        const scalar_t* xyz = positions.const_data_ptr<scalar_t>();
        int64_t* out = holder.mutable_data_ptr<int64_t>();
        const int64_t points_per_task = kPairsPerTask / std::max<int64_t>(1, num_boxes) + 1;
        at::parallel_for(0, holder.numel(), points_per_task, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i)
                out[i] = first_holder(prepared.data() + i / num_points * num_boxes, num_boxes, xyz + 3 * i);
        });
    });
    return holder;
}

}  // namespace

TORCH_LIBRARY_IMPL(cakdp, CPU, m) { m.impl("points_in_boxes", points_in_boxes); }

}  // namespace cakdp
