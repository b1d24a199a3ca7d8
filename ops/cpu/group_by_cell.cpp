// The points of each box, cell by cell.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "box_cells.h"
#include "checks/cells.h"
#include "neighbor_lists.h"

namespace cakdp {
namespace {

// Sorts one list by cell, stably: counts become firsts, from the place where the list begins.
template <typename T>
void group_list(const T* points, const Box<T>& box, const CellGrid& grid, const int64_t* begin, const int64_t* end,
                int64_t place, int64_t* first, int64_t* count, int64_t* members) {
    std::vector<int64_t> cells(end - begin);
    for (const int64_t* row = begin; row < end; ++row) {
        const T* xyz = points + 3 * *row;
        cells[row - begin] = cell_of(box, grid, xyz[0], xyz[1], xyz[2]);
        ++count[cells[row - begin]];
    }
    for (int64_t cell = 0; cell < grid.total(); ++cell) {
        first[cell] = place;
        place += count[cell];
    }
    for (const int64_t* row = begin; row < end; ++row) members[first[cells[row - begin]]++] = *row;
    for (int64_t cell = 0; cell < grid.total(); ++cell) first[cell] -= count[cell];
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> group_by_cell(const at::Tensor& points, const at::Tensor& boxes,
                                                             const at::Tensor& start, const at::Tensor& length,
                                                             const at::Tensor& index, at::IntArrayRef num_cells) {
    check_group_by_cell(points, boxes, start, length, index, num_cells);
    const CellGrid grid{num_cells[0], num_cells[1], num_cells[2]};
    const NeighborLists lists(start, length, index, points.size(0));
    const at::Tensor positions = points.contiguous(), rows = boxes.contiguous();
    at::Tensor first = at::empty({lists.size() * grid.total()}, index.options());
    at::Tensor count = at::zeros_like(first), members = at::full({index.size(0)}, -1, index.options());
    int64_t place = 0;
    std::vector<int64_t> places(lists.size());
    for (int64_t i = 0; i < lists.size(); ++i) {
        places[i] = place;
        place += lists.length(i);
    }
    TORCH_CHECK_VALUE(place <= index.size(0), "the lists overlap, they hold ", place, " rows of ", index.size(0));
    AT_DISPATCH_FLOATING_TYPES(points.scalar_type(), "group_by_cell", [&] {
        const scalar_t *xyz = positions.const_data_ptr<scalar_t>(), *numbers = rows.const_data_ptr<scalar_t>();
        int64_t *firsts = first.mutable_data_ptr<int64_t>(), *counts = count.mutable_data_ptr<int64_t>();
        int64_t* out = members.mutable_data_ptr<int64_t>();
        at::parallel_for(0, lists.size(), 16, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i)
                group_list(xyz, make_box(numbers + kBoxNumbers * i), grid, lists.begin(i), lists.end(i), places[i],
                           firsts + i * grid.total(), counts + i * grid.total(), out);
        });
    });
    return {first, count, members};
}

}  // namespace

TORCH_LIBRARY_IMPL(cakdp, CPU, m) { m.impl("group_by_cell", group_by_cell); }

}  // namespace cakdp
