// The three nearest points found so far, nearest first, equally near ones by ascending row.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace cakdp {

template <typename T>
struct Three {
    T squared[3] = {T(INFINITY), T(INFINITY), T(INFINITY)};
    int64_t row[3] = {-1, -1, -1};  // -1 for none

    CAKDP_HOST_DEVICE bool precedes(T distance, int64_t candidate, int slot) const {
        return distance < squared[slot] || (distance == squared[slot] && candidate < row[slot]);
    }

    // Takes a point in if it is among the three; one at an infinite distance never is.
    CAKDP_HOST_DEVICE void offer(T distance, int64_t candidate) {
        if (!precedes(distance, candidate, 2)) return;
        const bool second = precedes(distance, candidate, 1), first = precedes(distance, candidate, 0);
        squared[2] = second ? squared[1] : distance;
        row[2] = second ? row[1] : candidate;
        if (second) {
            squared[1] = first ? squared[0] : distance;
            row[1] = first ? row[0] : candidate;
        }
        if (first) squared[0] = distance, row[0] = candidate;
    }

    // Writes distances and rows; slots without a point repeat the first one's row, 0 where there is none at all.
    CAKDP_HOST_DEVICE void write(int64_t start, T* distances, int64_t* rows) const {
        for (int slot = 0; slot < 3; ++slot) {
            distances[slot] = std::sqrt(squared[slot]);
            const int64_t found = row[slot] < 0 ? row[0] : row[slot];
            rows[slot] = found < 0 ? 0 : start + found;
        }
    }
};

}  // namespace cakdp
