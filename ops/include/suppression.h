// When a kept box removes another one: its IoU with it exceeds the threshold.
#pragma once

#include "box_measures.h"

namespace cakdp {

template <typename T>
CAKDP_HOST_DEVICE inline bool iou_exceeds(T overlap, T sum, T iou_threshold) {
    return overlap > 0 && overlap > iou_threshold * (sum - overlap);
}

// An IoU is at most the ratio of the areas, and reaches the threshold only with an overlap that large a part of their
// sum. Both bounds are loosened by more than rounding, so that they decide nothing that the overlap would not.
template <class Rule, typename T>
CAKDP_HOST_DEVICE inline bool suppresses(const Box<T>& kept, const Box<T>& other, T iou_threshold) {
    constexpr T kLoosened = T(0.999);
    const T area1 = kept.area(), area2 = other.area(), sum = area1 + area2, bound = kLoosened * iou_threshold;
    if (Rule::kReach == 0 && smaller(area1, area2) < bound * larger(area1, area2)) return false;
    return iou_exceeds(Rule::overlap_above(kept, other, bound / (1 + iou_threshold) * sum), sum, iou_threshold);
}

}  // namespace cakdp
