// Overlap area of two rotated rectangles by a rule with a margin of 1 cm, which many published figures were obtained
// with: the vertices of the overlap are the points where edges cross, and every corner of one rectangle that lies in
// the other one enlarged by the margin on each side. They are taken in the order of their angles about their mean. The
// margin makes the area too large, by more the smaller the rectangles are.
#pragma once

#include "rectangle_overlap.h"

namespace cakdp {

constexpr double kMargin = 1e-2;
constexpr double kReachOfMargin = 1.5e-2;  // more than a corner's way out of the enlarged rectangle
constexpr int kMostVertices = 24;          // 8 corners, 16 pairs of edges

template <typename T>
CAKDP_HOST_DEVICE inline T cross(const Point<T>& origin, const Point<T>& a, const Point<T>& b) {
    return (a.x - origin.x) * (b.y - origin.y) - (a.y - origin.y) * (b.x - origin.x);
}

// Grows with the angle of a vector, from 0 at +x to 4.
template <typename T>
CAKDP_HOST_DEVICE inline T angle_rank(T x, T y) {
    const T length = magnitude(x) + magnitude(y);
    const T along = length > 0 ? x / length : T(0);
    return y < 0 ? 3 + along : 1 - along;
}

template <typename T>
struct Vertices {
    Point<T> at[kMostVertices];
    int count = 0;

    CAKDP_HOST_DEVICE void add(const Point<T>& point) { at[count++] = point; }

    CAKDP_HOST_DEVICE void add_crossing(const Point<T>& a, const Point<T>& b, const Point<T>& c, const Point<T>& d) {
        const T side_c = cross(a, b, c), side_d = cross(a, b, d);
        if ((side_c > 0) == (side_d > 0) || side_c == 0 || side_d == 0) return;
        const T side_a = cross(c, d, a), side_b = cross(c, d, b);
        if ((side_a > 0) == (side_b > 0) || side_a == 0 || side_b == 0) return;
        const T part = side_c / (side_c - side_d);
        add({c.x + part * (d.x - c.x), c.y + part * (d.y - c.y)});
    }

    CAKDP_HOST_DEVICE Point<T> mean() const {
        Point<T> sum{0, 0};
        for (int i = 0; i < count; ++i) sum.x += at[i].x, sum.y += at[i].y;
        return {sum.x / count, sum.y / count};
    }

    CAKDP_HOST_DEVICE void sort_by_angle() {
        const Point<T> middle = mean();
        T rank[kMostVertices];
        for (int i = 0; i < count; ++i) {
            const Point<T> point = at[i];
            const T own = angle_rank(point.x - middle.x, point.y - middle.y);
            int place = i;
            for (; place > 0 && rank[place - 1] > own; --place)
                rank[place] = rank[place - 1], at[place] = at[place - 1];
            rank[place] = own;
            at[place] = point;
        }
    }

    CAKDP_HOST_DEVICE T area_of_fan() const {
        T twice = 0;
        for (int i = 2; i < count; ++i) twice += cross(at[0], at[i - 1], at[i]);
        return magnitude(twice) / 2;
    }
};

template <typename T>
CAKDP_HOST_DEVICE inline bool within_margin(const Box<T>& box, const Point<T>& local) {
    return magnitude(local.x) <= box.half_x + T(kMargin) && magnitude(local.y) <= box.half_y + T(kMargin);
}

// Overlap area in square metres; 0 unless both boxes have_area().
template <typename T>
CAKDP_HOST_DEVICE inline T margin_overlap(const Box<T>& a, const Box<T>& b) {
    if (!circles_meet(a, b, T(kReachOfMargin))) return 0;
    const bool swap = comes_first(b, a);
    const Box<T>& frame = swap ? b : a;
    const Box<T>& box = swap ? a : b;
    const Pose<T> pose = relative_pose(frame, box);
    Point<T> first[4], second[4];
    Vertices<T> vertices;
    for (int i = 0; i < 4; ++i) {
        const T sign_x = i == 0 || i == 3 ? T(1) : T(-1), sign_y = i < 2 ? T(1) : T(-1);
        const T x = sign_x * box.half_x, y = sign_y * box.half_y;
        first[i] = {sign_x * frame.half_x, sign_y * frame.half_y};
        second[i] = {pose.center.x + x * pose.cos - y * pose.sin, pose.center.y + x * pose.sin + y * pose.cos};
        const T east = first[i].x - pose.center.x, north = first[i].y - pose.center.y;
        if (within_margin(frame, second[i])) vertices.add(second[i]);
        if (within_margin(box, {east * pose.cos + north * pose.sin, north * pose.cos - east * pose.sin}))
            vertices.add(first[i]);
    }
    for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) vertices.add_crossing(first[i], first[(i + 1) % 4], second[j], second[(j + 1) % 4]);
    vertices.sort_by_angle();
    return vertices.area_of_fan();
}

}  // namespace cakdp
