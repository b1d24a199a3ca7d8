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

// Whether one of the frame's axes separates it from the box; touching counts as separated.
template <typename T>
CAKDP_HOST_DEVICE inline bool separated(const Box<T>& frame, const Box<T>& box, const Pose<T>& pose) {
    const T cos = magnitude(pose.cos), sin = magnitude(pose.sin);
    return magnitude(pose.center.x) >= frame.half_x + box.half_x * cos + box.half_y * sin ||
           magnitude(pose.center.y) >= frame.half_y + box.half_x * sin + box.half_y * cos;
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

template <typename T>
CAKDP_HOST_DEVICE inline bool circles_meet(const Box<T>& a, const Box<T>& b) {
    const T east = b.x - a.x, north = b.y - a.y, reach = a.radius + b.radius;
    return east * east + north * north <= reach * reach;
}

// Overlap area in square metres; 0 unless both boxes have_area().
template <typename T>
CAKDP_HOST_DEVICE inline T rectangle_overlap(const Box<T>& a, const Box<T>& b) {
    if (!circles_meet(a, b) || !a.has_area() || !b.has_area()) return 0;
    const bool swap = a.radius < b.radius;
    const Box<T>& large = swap ? b : a;
    const Box<T>& small = swap ? a : b;
    const Pose<T> pose = relative_pose(large, small);
    if (separated(large, small, pose) || separated(small, large, relative_pose(small, large))) return 0;
    const T limit = small.radius;
    const Bounds<T> bounds{
        clamped(-large.half_x - pose.center.x, -limit, limit), clamped(large.half_x - pose.center.x, -limit, limit),
        clamped(-large.half_y - pose.center.y, -limit, limit), clamped(large.half_y - pose.center.y, -limit, limit)};
    return clamped(clipped_area(small, pose, bounds), T(0), smaller(a.area(), b.area()));
}

}  // namespace cakdp
