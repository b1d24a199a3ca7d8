// A box (x, y, z, dx, dy, dz, heading) prepared for many questions: metres, heading in radians about +z from +x.
#pragma once

#include <cmath>

#include "host_device.h"

namespace cakdp {

constexpr int kBoxNumbers = 7;

template <typename T>
CAKDP_HOST_DEVICE inline T smaller(T a, T b) {
    return b < a ? b : a;
}

template <typename T>
CAKDP_HOST_DEVICE inline T larger(T a, T b) {
    return a < b ? b : a;
}

template <typename T>
CAKDP_HOST_DEVICE inline T clamped(T value, T low, T high) {
    return smaller(larger(value, low), high);
}

template <typename T>
CAKDP_HOST_DEVICE inline T magnitude(T value) {
    return value < 0 ? -value : value;
}

// False for NaN and for both infinities.
template <typename T>
CAKDP_HOST_DEVICE inline bool is_finite(T value) {
    return value - value == 0;
}

template <typename T>
struct Box {
    T x, y, z;
    T half_x, half_y, half_z;
    T cos, sin;
    T radius;  // of the circle around the rectangle in the bird's-eye view; NaN for one that cannot overlap anything

    CAKDP_HOST_DEVICE T area() const { return 4 * half_x * half_y; }
    CAKDP_HOST_DEVICE T volume() const { return 8 * half_x * half_y * half_z; }

    // Whether the rectangle in the bird's-eye view is finite and has a positive size.
    CAKDP_HOST_DEVICE bool has_area() const { return radius > 0; }

    // Faces belong to the box; one with a size that is not positive, or with a NaN, holds nothing.
    CAKDP_HOST_DEVICE bool holds(T px, T py, T pz) const {
        const T east = px - x, north = py - y;
        return half_x > 0 && half_y > 0 && half_z > 0 && magnitude(pz - z) <= half_z &&
               magnitude(east * cos + north * sin) <= half_x && magnitude(north * cos - east * sin) <= half_y;
    }
};

template <typename T>
CAKDP_HOST_DEVICE inline void set_radius(Box<T>& box) {
    const T radius = std::sqrt(box.half_x * box.half_x + box.half_y * box.half_y);
    const bool finite = is_finite(box.x) && is_finite(box.y) && is_finite(radius) && is_finite(box.cos);
    box.radius = finite && box.half_x > 0 && box.half_y > 0 ? radius : T(NAN);
}

template <typename T>
CAKDP_HOST_DEVICE inline Box<T> make_box(const T* numbers, bool axis_aligned = false) {
    Box<T> box;
    box.x = numbers[0];
    box.y = numbers[1];
    box.z = numbers[2];
    box.half_x = numbers[3] / 2;
    box.half_y = numbers[4] / 2;
    box.half_z = numbers[5] / 2;
    box.cos = axis_aligned ? T(1) : std::cos(numbers[6]);
    box.sin = axis_aligned ? T(0) : std::sin(numbers[6]);
    set_radius(box);
    return box;
}

// The box with its heading turned to the nearest multiple of 90 degrees, as one along the axes.
template <typename T>
CAKDP_HOST_DEVICE inline Box<T> make_upright_box(const T* numbers) {
    constexpr T kPi = T(3.14159265358979323846);
    Box<T> box = make_box(numbers, true);
    const T heading = numbers[6], from_axis = heading - std::floor(heading / kPi + T(0.5)) * kPi;
    if (magnitude(from_axis) < kPi / 4) return box;
    const T half_x = box.half_x;
    box.half_x = is_finite(from_axis) ? box.half_y : T(0);
    box.half_y = half_x;
    set_radius(box);
    return box;
}

}  // namespace cakdp
