// What two boxes have in common: an overlap or an IoU, by one of three rules for the overlap of their rectangles.
#pragma once

#include "margin_overlap.h"

namespace cakdp {

// The true overlap.
struct Exact {
    static constexpr double kReach = 0;  // how far apart circles around overlapping rectangles may be

    template <typename T>
    CAKDP_HOST_DEVICE static T overlap(const Box<T>& a, const Box<T>& b) {
        return rectangle_overlap(a, b);
    }

    // The overlap where it exceeds a bound, perhaps 0 where it does not.
    template <typename T>
    CAKDP_HOST_DEVICE static T overlap_above(const Box<T>& a, const Box<T>& b, T bound) {
        return rectangle_overlap(a, b, bound);
    }

    template <typename T>
    CAKDP_HOST_DEVICE static T iou(T overlap, T sum) {
        return overlap > 0 ? smaller(overlap / (sum - overlap), T(1)) : T(0);
    }
};

// The rule with a margin; its IoU of small boxes may exceed 1.
struct WithMargin {
    static constexpr double kReach = kReachOfMargin;

    template <typename T>
    CAKDP_HOST_DEVICE static T overlap(const Box<T>& a, const Box<T>& b) {
        return margin_overlap(a, b);
    }

    template <typename T>
    CAKDP_HOST_DEVICE static T overlap_above(const Box<T>& a, const Box<T>& b, T) {
        return overlap(a, b);
    }

    template <typename T>
    CAKDP_HOST_DEVICE static T iou(T overlap, T sum) {
        return overlap > 0 ? overlap / larger(sum - overlap, T(1e-8)) : T(0);
    }
};

// Length that two intervals share, given by centres and half lengths; the same in either order.
template <typename T>
CAKDP_HOST_DEVICE inline T shared_length(T center1, T half1, T center2, T half2) {
    const T apart = magnitude(center2 - center1);
    return larger(smaller(half1 + half2 - apart, 2 * smaller(half1, half2)), T(0));
}

// The true overlap of boxes along the axes.
struct Upright {
    static constexpr double kReach = 0;

    template <typename T>
    CAKDP_HOST_DEVICE static T overlap(const Box<T>& a, const Box<T>& b) {
        if (!a.has_area() || !b.has_area()) return 0;
        return shared_length(a.x, a.half_x, b.x, b.half_x) * shared_length(a.y, a.half_y, b.y, b.half_y);
    }

    template <typename T>
    CAKDP_HOST_DEVICE static T overlap_above(const Box<T>& a, const Box<T>& b, T) {
        return overlap(a, b);
    }

    template <typename T>
    CAKDP_HOST_DEVICE static T iou(T overlap, T sum) {
        return Exact::iou(overlap, sum);
    }
};

// Of two areas or volumes, the same in either order even where a product and a sum are rounded as one.
template <typename T>
CAKDP_HOST_DEVICE inline T sum_of(T a, T b) {
    return larger(a, b) + smaller(a, b);
}

// A measure prepares boxes with make() and compares them with of(); boxes whose circles are farther apart than kReach
// give 0.
template <class Rule>
struct OverlapBev {
    static constexpr double kReach = Rule::kReach;

    template <typename T>
    CAKDP_HOST_DEVICE static Box<T> make(const T* numbers) {
        return make_box(numbers);
    }

    template <typename T>
    CAKDP_HOST_DEVICE static T of(const Box<T>& a, const Box<T>& b) {
        return Rule::overlap(a, b);
    }
};

template <class Rule>
struct IouBev : OverlapBev<Rule> {
    template <typename T>
    CAKDP_HOST_DEVICE static T of(const Box<T>& a, const Box<T>& b) {
        return Rule::iou(Rule::overlap(a, b), sum_of(a.area(), b.area()));
    }
};

template <class Rule>
struct Iou3d : OverlapBev<Rule> {
    template <typename T>
    CAKDP_HOST_DEVICE static T of(const Box<T>& a, const Box<T>& b) {
        const bool finite = is_finite(b.z - a.z) && is_finite(a.half_z) && is_finite(b.half_z);
        const bool solid = finite && a.half_z > 0 && b.half_z > 0;
        const T height = solid ? shared_length(a.z, a.half_z, b.z, b.half_z) : T(0);
        return height > 0 ? Rule::iou(Rule::overlap(a, b) * height, sum_of(a.volume(), b.volume())) : T(0);
    }
};

// The IoU of boxes turned to the nearest multiple of 90 degrees.
struct NearestIouBev : IouBev<Upright> {
    template <typename T>
    CAKDP_HOST_DEVICE static Box<T> make(const T* numbers) {
        return make_upright_box(numbers);
    }
};

}  // namespace cakdp
