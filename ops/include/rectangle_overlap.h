// Overlap area of two rotated rectangles.
//
// The rectangle of the smaller radius is a polygon around its own centre; the other one, seen along its own axes,
// bounds x and y in that polygon's frame. With the polygon walked counter-clockwise,
//
//     overlap = - sum over edges of the integral of clamp(y, y_low, y_high) dx over clamp(x, x_low, x_high),
//
// since at every x the clamped ends of the polygon's vertical section enclose exactly its part within the bounds. The
// sum is continuous in every coordinate, so coinciding edges need no tolerance, and none of its numbers exceeds that
// radius, so rounding stays relative to it, however far from the origin the pair lies.
#pragma once

#include "box.h"

namespace cakdp {

template <typename T>
struct Bounds {
    T x_low, x_high, y_low, y_high;
};

template <typename T>
struct Point {
    T x, y;
};

// A rectangle's centre in another one's frame, and the turn from that one to it.
template <typename T>
struct Pose {
    Point<T> center;
    T cos, sin;
};

template <typename T>
CAKDP_HOST_DEVICE inline Pose<T> relative_pose(const Box<T>& frame, const Box<T>& box) {
    const T east = box.x - frame.x, north = box.y - frame.y;
    return {{east * frame.cos + north * frame.sin, north * frame.cos - east * frame.sin},
            frame.cos * box.cos + frame.sin * box.sin,
            frame.cos * box.sin - frame.sin * box.cos};
}

// Mean of clamp(y, low, high) for y running evenly from begin to end: three straight pieces.
template <typename T>
CAKDP_HOST_DEVICE inline T mean_clamped(T begin, T end, T low, T high) {
    const T rise = end - begin;
    const T per_metre = rise == 0 ? T(0) : 1 / rise;
    const T at_low = clamped((low - begin) * per_metre, T(0), T(1));
    const T at_high = clamped((high - begin) * per_metre, T(0), T(1));
    const T first = smaller(at_low, at_high), second = larger(at_low, at_high);
    const T y0 = clamped(begin, low, high), y1 = clamped(begin + first * rise, low, high);
    const T y2 = clamped(begin + second * rise, low, high), y3 = clamped(end, low, high);
    return (first * (y0 + y1) + (second - first) * (y1 + y2) + (1 - second) * (y2 + y3)) / 2;
}

// Integral along one edge.
template <typename T>
CAKDP_HOST_DEVICE inline T edge_integral(const Point<T>& from, const Point<T>& to, const Bounds<T>& bounds) {
    const T begin = clamped(from.x, bounds.x_low, bounds.x_high), end = clamped(to.x, bounds.x_low, bounds.x_high);
    if (begin == end) return 0;
    const T slope = (to.y - from.y) / (to.x - from.x);
    const T y_begin = from.y + (begin - from.x) * slope, y_end = from.y + (end - from.x) * slope;
    return (end - begin) * mean_clamped(y_begin, y_end, bounds.y_low, bounds.y_high);
}

template <typename T>
CAKDP_HOST_DEVICE inline T clipped_area(const Box<T>& box, const Pose<T>& pose, const Bounds<T>& bounds) {
    const T along_x = box.half_x * pose.cos, along_y = box.half_x * pose.sin;
    const T across_x = -box.half_y * pose.sin, across_y = box.half_y * pose.cos;
    const Point<T> front_left{along_x + across_x, along_y + across_y};
    const Point<T> rear_left{across_x - along_x, across_y - along_y};
    const Point<T> rear_right{-front_left.x, -front_left.y};
    const Point<T> front_right{-rear_left.x, -rear_left.y};
    return -(edge_integral(front_left, rear_left, bounds) + edge_integral(rear_left, rear_right, bounds) +
             edge_integral(rear_right, front_right, bounds) + edge_integral(front_right, front_left, bounds));
}

// Whether the circles around two boxes, the margin apart, meet; never for a box that cannot overlap anything.
template <typename T>
CAKDP_HOST_DEVICE inline bool circles_meet(const Box<T>& a, const Box<T>& b, T margin = 0) {
    const T east = b.x - a.x, north = b.y - a.y, reach = a.radius + b.radius + margin;
    return east * east + north * north <= reach * reach;
}

// An order of boxes that does not depend on how they are given, so that overlaps are symmetric to the last bit.
template <typename T>
CAKDP_HOST_DEVICE inline bool comes_first(const Box<T>& a, const Box<T>& b) {
    if (a.radius != b.radius) return a.radius > b.radius;
    if (a.x != b.x) return a.x < b.x;
    if (a.y != b.y) return a.y < b.y;
    if (a.cos != b.cos) return a.cos < b.cos;
    if (a.sin != b.sin) return a.sin < b.sin;
    return a.half_x != b.half_x ? a.half_x < b.half_x : a.half_y < b.half_y;
}

// Area of the part of the frame's axis-aligned surroundings that both boxes span: never less than their overlap.
template <typename T>
CAKDP_HOST_DEVICE inline T common_span(const Box<T>& frame, const Box<T>& box, const Pose<T>& pose) {
    const T cos = magnitude(pose.cos), sin = magnitude(pose.sin);
    const T reach_x = box.half_x * cos + box.half_y * sin, reach_y = box.half_x * sin + box.half_y * cos;
    const T x = smaller(frame.half_x, pose.center.x + reach_x) - larger(-frame.half_x, pose.center.x - reach_x);
    const T y = smaller(frame.half_y, pose.center.y + reach_y) - larger(-frame.half_y, pose.center.y - reach_y);
    return larger(x, T(0)) * larger(y, T(0));
}

template <typename T>
CAKDP_HOST_DEVICE inline T overlap_in_frame(const Box<T>& large, const Box<T>& small, const Pose<T>& pose) {
    const T limit = small.radius;
    const Bounds<T> bounds{
        clamped(-large.half_x - pose.center.x, -limit, limit), clamped(large.half_x - pose.center.x, -limit, limit),
        clamped(-large.half_y - pose.center.y, -limit, limit), clamped(large.half_y - pose.center.y, -limit, limit)};
    return clamped(clipped_area(small, pose, bounds), T(0), smaller(large.area(), small.area()));
}

// Overlap area in square metres; 0 unless both boxes have_area(), and where it cannot be larger than the least one of
// interest.
template <typename T>
CAKDP_HOST_DEVICE inline T rectangle_overlap(const Box<T>& a, const Box<T>& b, T least = 0) {
    if (!circles_meet(a, b)) return 0;
    const bool swap = comes_first(b, a);
    const Box<T>& large = swap ? b : a;
    const Box<T>& small = swap ? a : b;
    const Pose<T> pose = relative_pose(large, small);
    if (!(common_span(large, small, pose) > least)) return 0;
    if (!(common_span(small, large, relative_pose(small, large)) > least)) return 0;
    return overlap_in_frame(large, small, pose);
}

}  // namespace cakdp
