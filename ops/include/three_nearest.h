// The three nearest of the points shown so far; of equally near ones the first.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace cakdp {

template <typename T>
struct ThreeNearest {
    T distance_squared[3] = {T(INFINITY), T(INFINITY), T(INFINITY)};
    int64_t index[3] = {-1, -1, -1};

    CAKDP_HOST_DEVICE void show(int64_t point, T distance) {
        if (!(distance < distance_squared[2])) return;
        if (!(distance < distance_squared[1])) return put(2, point, distance);
        move(1, 2);
        if (!(distance < distance_squared[0])) return put(1, point, distance);
        move(0, 1);
        put(0, point, distance);
    }

  private:
    CAKDP_HOST_DEVICE void put(int slot, int64_t point, T distance) {
        distance_squared[slot] = distance;
        index[slot] = point;
    }
    CAKDP_HOST_DEVICE void move(int from, int to) { put(to, index[from], distance_squared[from]); }
};

template <typename T>
CAKDP_HOST_DEVICE inline T squared_distance(T px, T py, T pz, const T* center) {
    const T x = px - center[0], y = py - center[1], z = pz - center[2];
    return x * x + y * y + z * z;
}

}  // namespace cakdp
