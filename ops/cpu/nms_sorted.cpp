// Greedy non-maximum suppression of boxes that come best first within each group.
#include "checks/nms_sorted.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "boxes.h"
#include "kept_boxes.h"
#include "suppression.h"

namespace cakdp {
namespace {

constexpr int64_t kBlock = 2048;
constexpr int64_t kBoxesPerTask = 256;

struct Limits {
    int64_t looked_at, kept;
};

// Which of count boxes stay. Those of a block meet the ones kept before it in parallel, then one another in order.
template <class Rule, typename T>
std::vector<int64_t> greedy(const Box<T>* boxes, int64_t count, T iou_threshold, int64_t most) {
    KeptBoxes<T> kept(boxes, count, T(Rule::kReach));
    std::vector<int64_t> keep;
    std::vector<char> removed(kBlock);
    const auto is_removed = [&](int64_t i, int64_t first) {
        return kept.any_near(boxes[i], first,
                             [&](int64_t k) { return suppresses<Rule>(boxes[k], boxes[i], iou_threshold); });
    };
    for (int64_t begin = 0; begin < count; begin += kBlock) {
        const int64_t end = std::min(begin + kBlock, count);
        if (begin > 0)
            at::parallel_for(begin, end, kBoxesPerTask, [&](int64_t from, int64_t to) {
                for (int64_t i = from; i < to; ++i) removed[i - begin] = is_removed(i, 0);
            });
        for (int64_t i = begin; i < end; ++i) {
            if (removed[i - begin] || is_removed(i, begin)) continue;
            if (static_cast<int64_t>(keep.size()) == most) return keep;
            keep.push_back(i);
            kept.keep(i);
        }
    }
    return keep;
}

// Where each run of equal groups begins, and the end of the last.
std::vector<int64_t> run_starts(const std::optional<at::Tensor>& groups, int64_t count) {
    std::vector<int64_t> starts{0};
    if (groups) {
        const at::Tensor ids = groups->contiguous();
        const int64_t* id = ids.const_data_ptr<int64_t>();
        for (int64_t i = 1; i < count; ++i)
            if (id[i] != id[i - 1]) starts.push_back(i);
    }
    starts.push_back(count);
    return starts;
}

template <class Rule, typename T>
std::vector<std::vector<int64_t>> greedy_by_group(const std::vector<Box<T>>& boxes, const std::vector<int64_t>& starts,
                                                  T iou_threshold, const Limits& limits) {
    const int64_t num_groups = static_cast<int64_t>(starts.size()) - 1;
    std::vector<std::vector<int64_t>> keep(num_groups);
    const auto run = [&](int64_t begin, int64_t end) {
        for (int64_t group = begin; group < end; ++group) {
            const int64_t count = std::min(starts[group + 1] - starts[group], limits.looked_at);
            keep[group] = greedy<Rule>(boxes.data() + starts[group], count, iou_threshold, limits.kept);
        }
    };
    if (num_groups < at::get_num_threads())
        run(0, num_groups);
    else
        at::parallel_for(0, num_groups, 1, run);
    return keep;
}

at::Tensor nms_sorted(const at::Tensor& boxes, const std::optional<at::Tensor>& groups, double iou_threshold,
                      bool axis_aligned, bool compat, int64_t pre_max, int64_t post_max) {
    check_nms(boxes, groups);
    const Limits limits{limit_or_all(pre_max, boxes), limit_or_all(post_max, boxes)};
    const std::vector<int64_t> starts = run_starts(groups, boxes.size(0));
    std::vector<std::vector<int64_t>> keep;
    AT_DISPATCH_FLOATING_TYPES(boxes.scalar_type(), "nms_sorted", [&] {
        const auto prepared = make_boxes<scalar_t>(boxes, axis_aligned);
        const scalar_t threshold = static_cast<scalar_t>(iou_threshold);
        keep = axis_aligned ? greedy_by_group<Upright>(prepared, starts, threshold, limits)
               : compat     ? greedy_by_group<WithMargin>(prepared, starts, threshold, limits)
                            : greedy_by_group<Exact>(prepared, starts, threshold, limits);
    });
    std::vector<int64_t> positions;
    for (size_t group = 0; group < keep.size(); ++group)
        for (const int64_t position : keep[group]) positions.push_back(starts[group] + position);
    return at::tensor(positions, boxes.options().dtype(at::kLong));
}

}  // namespace

TORCH_LIBRARY_IMPL(cakdp, CPU, m) { m.impl("nms_sorted", nms_sorted); }

}  // namespace cakdp
