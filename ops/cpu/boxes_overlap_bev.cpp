// Overlaps and IoUs of boxes, pairwise and one to one.
#include "checks/boxes_overlap_bev.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cstring>

#include "box_measures.h"

namespace cakdp {
namespace {

constexpr int64_t kPairsPerTask = 1 << 14;
constexpr int64_t kBytesAtOnce = 8;

template <class Measure, typename T>
std::vector<Box<T>> make_all(const at::Tensor& boxes) {
    const at::Tensor rows = boxes.contiguous();
    const T* numbers = rows.const_data_ptr<T>();
    std::vector<Box<T>> prepared(rows.size(0));
    for (size_t i = 0; i < prepared.size(); ++i) prepared[i] = Measure::make(numbers + i * kBoxNumbers);
    return prepared;
}

// Places and radii side by side, as a processor compares them several at a time.
template <typename T>
struct Circles {
    std::vector<T> x, y, radius;

    explicit Circles(const std::vector<Box<T>>& boxes) {
        for (const Box<T>& box : boxes) x.push_back(box.x), y.push_back(box.y), radius.push_back(box.radius);
    }

    // Writes which circles, a margin apart, meet the one around a box.
    void mark_meeting(const Box<T>& box, T margin, unsigned char* meets) const {
        const T *xs = x.data(), *ys = y.data(), *radii = radius.data();
        const T own_x = box.x, own_y = box.y, own_radius = box.radius;
        const int64_t count = static_cast<int64_t>(x.size());
        for (int64_t j = 0; j < count; ++j) {
            const T east = xs[j] - own_x, north = ys[j] - own_y, reach = own_radius + radii[j] + margin;
            meets[j] = east * east + north * north <= reach * reach ? 1 : 0;
        }
    }
};

// Compares one box with all others whose circles meet its own; out holds zeros before.
template <class Measure, typename T>
void compare_row(const Box<T>& box, const std::vector<Box<T>>& others, const std::vector<unsigned char>& meets,
                 T* out) {
    const int64_t count = static_cast<int64_t>(others.size());
    for (int64_t first = 0; first < count; first += kBytesAtOnce) {
        uint64_t any;
        std::memcpy(&any, meets.data() + first, sizeof any);
        if (any == 0) continue;
        for (int64_t j = first; j < std::min(first + kBytesAtOnce, count); ++j)
            if (meets[j]) out[j] = Measure::of(box, others[j]);
    }
}

template <class Measure>
at::Tensor compare_pairwise(const at::Tensor& boxes1, const at::Tensor& boxes2) {
    check_boxes(boxes1, boxes2);
    const int64_t rows = boxes1.size(0), columns = boxes2.size(0);
    at::Tensor measured = at::zeros({rows, columns}, boxes1.options().memory_format(at::MemoryFormat::Contiguous));
    if (measured.numel() == 0) return measured;
    AT_DISPATCH_FLOATING_TYPES(boxes1.scalar_type(), "compare_pairwise", [&] {
        const auto first = make_all<Measure, scalar_t>(boxes1), second = make_all<Measure, scalar_t>(boxes2);
        const Circles<scalar_t> circles(second);
        scalar_t* out = measured.mutable_data_ptr<scalar_t>();
        const int64_t rows_per_task = std::max<int64_t>(1, kPairsPerTask / columns);
        at::parallel_for(0, rows, rows_per_task, [&](int64_t begin, int64_t end) {
            std::vector<unsigned char> meets(columns + kBytesAtOnce, 0);
            for (int64_t i = begin; i < end; ++i) {
                circles.mark_meeting(first[i], scalar_t(Measure::kReach), meets.data());
                compare_row<Measure>(first[i], second, meets, out + i * columns);
            }
        });
    });
    return measured;
}

template <class Measure>
at::Tensor compare_aligned(const at::Tensor& boxes1, const at::Tensor& boxes2) {
    check_box_pairs(boxes1, boxes2);
    const at::Tensor rows1 = boxes1.contiguous(), rows2 = boxes2.contiguous();
    at::Tensor measured = at::empty({boxes1.size(0)}, boxes1.options());
    AT_DISPATCH_FLOATING_TYPES(boxes1.scalar_type(), "compare_aligned", [&] {
        const scalar_t* first = rows1.const_data_ptr<scalar_t>();
        const scalar_t* second = rows2.const_data_ptr<scalar_t>();
        scalar_t* out = measured.mutable_data_ptr<scalar_t>();
        at::parallel_for(0, measured.size(0), kPairsPerTask, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i)
                out[i] = Measure::of(Measure::make(first + i * kBoxNumbers), Measure::make(second + i * kBoxNumbers));
        });
    });
    return measured;
}

template <template <class> class Measure>
at::Tensor pairwise(const at::Tensor& boxes1, const at::Tensor& boxes2, bool compat) {
    return compat ? compare_pairwise<Measure<WithMargin>>(boxes1, boxes2)
                  : compare_pairwise<Measure<Exact>>(boxes1, boxes2);
}

template <template <class> class Measure>
at::Tensor aligned(const at::Tensor& boxes1, const at::Tensor& boxes2, bool compat) {
    return compat ? compare_aligned<Measure<WithMargin>>(boxes1, boxes2)
                  : compare_aligned<Measure<Exact>>(boxes1, boxes2);
}

}  // namespace

TORCH_LIBRARY_IMPL(cakdp, CPU, m) {
    m.impl("boxes_overlap_bev", pairwise<OverlapBev>);
    m.impl("boxes_overlap_bev_aligned", aligned<OverlapBev>);
    m.impl("boxes_iou_bev", pairwise<IouBev>);
    m.impl("boxes_iou_bev_aligned", aligned<IouBev>);
    m.impl("boxes_iou_3d", pairwise<Iou3d>);
    m.impl("boxes_iou_3d_aligned", aligned<Iou3d>);
    m.impl("nearest_bev_iou", compare_pairwise<NearestIouBev>);
}

}  // namespace cakdp
