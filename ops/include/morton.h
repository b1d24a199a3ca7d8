// A point's place along the Morton curve: points near each other on it are near each other in space.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace cakdp {

constexpr int kCurveBits = 15;  // of each axis
constexpr int64_t kCurveCells = int64_t{1} << kCurveBits;

// Moves the bits of a number below 2^21 three places apart.
CAKDP_HOST_DEVICE inline int64_t spread_bits(int64_t bits) {
    bits = (bits | bits << 32) & 0x1f00000000ffff;
    bits = (bits | bits << 16) & 0x1f0000ff0000ff;
    bits = (bits | bits << 8) & 0x100f00f00f00f00f;
    bits = (bits | bits << 4) & 0x10c30c30c30c30c3;
    return (bits | bits << 2) & 0x1249249249249249;
}

// The cell, 0 .. kCurveCells - 1, of a finite value in [low, high].
template <typename T>
CAKDP_HOST_DEVICE inline int64_t curve_cell(T value, T low, T high) {
    const T range = high / 2 - low / 2;  // halves do not overflow
    const T share = range > 0 ? (value / 2 - low / 2) / range : T(0);
    const int64_t cell = static_cast<int64_t>(share * kCurveCells);
    return cell < 0 ? 0 : cell >= kCurveCells ? kCurveCells - 1 : cell;
}

// A number of 3 * kCurveBits bits; low and high bound all points, axis by axis.
template <typename T>
CAKDP_HOST_DEVICE inline int64_t curve_place(const T* point, const T* low, const T* high) {
    int64_t place = 0;
    for (int axis = 0; axis < 3; ++axis) place |= spread_bits(curve_cell(point[axis], low[axis], high[axis])) << axis;
    return place;
}

}  // namespace cakdp
