// Rows of several frames stacked on one another: which of them belong to the frame of a row of another stack.
#pragma once

#include <cstdint>

#include "box.h"

namespace cakdp {

struct Rows {
    int64_t begin, end;
};

// Two stacks of the same frames, and how many rows each frame has in them.
struct Stacks {
    const int64_t* point_counts;
    const int64_t* region_counts;
    int64_t frames, num_points, num_regions;
};

// The points of a region's frame; none where the counts do not reach the region, never one that does not exist.
CAKDP_HOST_DEVICE inline Rows points_of_frame(const Stacks& stacks, int64_t region) {
    Rows points{0, 0};
    int64_t regions = 0;
    for (int64_t frame = 0; frame < stacks.frames; ++frame) {
        points.begin = points.end;
        points.end = smaller(stacks.num_points, points.begin + larger<int64_t>(0, stacks.point_counts[frame]));
        regions += larger<int64_t>(0, stacks.region_counts[frame]);
        if (region < regions) return points;
    }
    return {stacks.num_points, stacks.num_points};
}

}  // namespace cakdp
