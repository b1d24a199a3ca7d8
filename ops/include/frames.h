// Frames whose rows lie one after another: starts[frame] is where each begins, starts[frames] where the last one ends.
#pragma once

#include <cstdint>

#include "box.h"

namespace cakdp {

struct Rows {
    int64_t begin, end;
};

// Two stacks of the same frames: points, and queries that each ask about the points of their frame.
struct Stacks {
    const int64_t *point_starts, *query_starts;
    int64_t frames, num_points, num_queries;
};

// The frame of a row, or frames where it belongs to none; starts are in ascending order.
CAKDP_HOST_DEVICE inline int64_t frame_of(const int64_t* starts, int64_t frames, int64_t row) {
    int64_t low = 0, high = frames;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (starts[middle + 1] <= row) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

// The points of a query's frame; none, behind those of all frames, where it belongs to no frame.
CAKDP_HOST_DEVICE inline Rows points_of_frame(const Stacks& stacks, int64_t query) {
    const int64_t frame = frame_of(stacks.query_starts, stacks.frames, query);
    return {stacks.point_starts[frame], stacks.point_starts[smaller(frame + 1, stacks.frames)]};
}

}  // namespace cakdp
