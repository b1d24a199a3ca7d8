// Parts of space that are asked which points they hold. A region with a NaN or an infinity holds nothing.
#pragma once

#include "box.h"

namespace cakdp {

template <typename T>
struct BoxRegion {
    static constexpr int kNumbers = kBoxNumbers;
    Box<T> box;

    CAKDP_HOST_DEVICE explicit BoxRegion(const T* numbers, T = 0) : box(make_box(numbers)) {
        if (!box.has_area() || !is_finite(box.z) || !is_finite(box.half_z)) box.half_x = -1;
    }
    CAKDP_HOST_DEVICE bool holds(T x, T y, T z) const { return box.holds(x, y, z); }
    CAKDP_HOST_DEVICE bool is_empty() const { return !(box.half_x > 0); }
    CAKDP_HOST_DEVICE T x() const { return box.x; }
    CAKDP_HOST_DEVICE T y() const { return box.y; }
    CAKDP_HOST_DEVICE T reach_x() const { return magnitude(box.cos) * box.half_x + magnitude(box.sin) * box.half_y; }
    CAKDP_HOST_DEVICE T reach_y() const { return magnitude(box.sin) * box.half_x + magnitude(box.cos) * box.half_y; }
};

template <typename T>
struct BallRegion {
    static constexpr int kNumbers = 3;
    T center_x, center_y, center_z;
    T radius_squared;

    CAKDP_HOST_DEVICE explicit BallRegion(const T* numbers, T radius_squared)
        : center_x(numbers[0]), center_y(numbers[1]), center_z(numbers[2]), radius_squared(radius_squared) {}
    CAKDP_HOST_DEVICE bool holds(T x, T y, T z) const {
        const T east = x - center_x, north = y - center_y, up = z - center_z;
        return east * east + north * north + up * up <= radius_squared;
    }
    CAKDP_HOST_DEVICE bool is_empty() const { return !is_finite(center_x + center_y + center_z); }
    CAKDP_HOST_DEVICE T x() const { return center_x; }
    CAKDP_HOST_DEVICE T y() const { return center_y; }
    CAKDP_HOST_DEVICE T reach_x() const { return std::sqrt(radius_squared); }
    CAKDP_HOST_DEVICE T reach_y() const { return std::sqrt(radius_squared); }
};

}  // namespace cakdp
