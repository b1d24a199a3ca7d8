// The points of each box, cell by cell: a counting sort that keeps their order.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "box_cells.h"

namespace cakdp {

// One list of points a box; lists that reach beyond total, and points that do not exist, are ignored.
template <typename T>
struct BoxLists {
    const T *points, *boxes;
    const int64_t *start, *length, *index;
    int64_t num_points, num_boxes, total;
};

// count (num_boxes, cells), 0 at first; of each entry of index its cell among all boxes, and its rank in that cell.
// cell is left as it is where an entry belongs to no list.
template <typename T>
void rank_in_cells_cuda(const BoxLists<T>& lists, const CellGrid& grid, int64_t* count, int64_t* cell, int64_t* rank,
                        cudaStream_t stream);

// members[first[cell] + rank] = index, entry by entry; a negative cell is skipped.
void place_members_cuda(const int64_t* index, const int64_t* cell, const int64_t* rank, const int64_t* first,
                        int64_t total, int64_t* members, cudaStream_t stream);

}  // namespace cakdp
