// A box divided into equal cells along its own axes; x is outermost, z innermost.
#pragma once

#include <cstdint>

#include "box.h"

namespace cakdp {

struct CellGrid {
    int64_t x, y, z;

    CAKDP_HOST_DEVICE int64_t total() const { return x * y * z; }
};

// Cell of a position along one axis, -half to half from the middle; what lies beyond counts to the outermost cells.
template <typename T>
CAKDP_HOST_DEVICE inline int64_t cell_along(T position, T half, int64_t count) {
    const T cell = (position + half) / (2 * half / static_cast<T>(count));
    if (!(cell > 0)) return 0;
    return cell < static_cast<T>(count) ? smaller(static_cast<int64_t>(cell), count - 1) : count - 1;
}

template <typename T>
CAKDP_HOST_DEVICE inline int64_t cell_of(const Box<T>& box, const CellGrid& grid, T x, T y, T z) {
    const T east = x - box.x, north = y - box.y;
    const int64_t cell_x = cell_along(east * box.cos + north * box.sin, box.half_x, grid.x);
    const int64_t cell_y = cell_along(north * box.cos - east * box.sin, box.half_y, grid.y);
    return (cell_x * grid.y + cell_y) * grid.z + cell_along(z - box.z, box.half_z, grid.z);
}

}  // namespace cakdp
