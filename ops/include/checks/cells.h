// What grouping points by cell, and pooling over the cells, refuse on every device.
#pragma once

#include "checks/neighbors.h"

namespace cakdp {

inline void check_group_by_cell(const at::Tensor& points, const at::Tensor& boxes, const at::Tensor& start,
                                const at::Tensor& length, const at::Tensor& index, at::IntArrayRef num_cells) {
    check_shape(points, {-1, 3}, "points");
    check_shape(boxes, {-1, 7}, "boxes");
    check_alike({points, boxes}, "points and boxes");
    check_neighbors(start, length, index, boxes.size(0));
    check_alike({points, index}, "points and index", false);
    const bool positive = num_cells.size() == 3 && num_cells[0] > 0 && num_cells[1] > 0 && num_cells[2] > 0;
    TORCH_CHECK_VALUE(positive, "num_cells must be three positive numbers, got ", num_cells);
}

inline void check_cells(const at::Tensor& features, const at::Tensor& first, const at::Tensor& count,
                        const at::Tensor& members) {
    check_shape(features, {-1, -1}, "features");
    check_shape(first, {-1}, "first");
    check_neighbors(first, count, members, first.size(0));
    check_alike({features, members}, "features and members", false);
}

inline void check_cells_backward(const at::Tensor& grad, const at::Tensor& first, const at::Tensor& count,
                                 const at::Tensor& members, int64_t num_rows) {
    check_cells(grad, first, count, members);
    TORCH_CHECK_VALUE(grad.size(0) == first.size(0) && num_rows >= 0, "grad must have one row a cell, got ",
                      grad.size(0), " for ", first.size(0), " cells");
}

inline void check_winners(const at::Tensor& grad, const at::Tensor& winner, int64_t num_rows) {
    check_shape(grad, {-1, -1}, "grad");
    check_shape(winner, {grad.size(0), grad.size(1)}, "winner");
    check_dtype(winner, at::kLong, "winner");
    check_alike({grad, winner}, "grad and winner", false);
    TORCH_CHECK_VALUE(num_rows >= 0, "num_rows must be at least 0, got ", num_rows);
}

inline void check_three_nn_local(const at::Tensor& points, const at::Tensor& centers, const at::Tensor& start,
                                 const at::Tensor& length, const at::Tensor& index) {
    check_shape(points, {-1, 3}, "points");
    check_shape(centers, {-1, -1, 3}, "centers");
    check_alike({points, centers}, "points and centers");
    check_neighbors(start, length, index, centers.size(0));
    check_alike({points, index}, "points and index", false);
}

}  // namespace cakdp
