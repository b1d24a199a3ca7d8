// The points of each box, cell by cell, on CUDA tensors.
#include "group_by_cell.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <tuple>

#include "checks/cells.h"
#include "device.h"

namespace cakdp {
namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> group_by_cell(const at::Tensor& points, const at::Tensor& boxes,
                                                             const at::Tensor& start, const at::Tensor& length,
                                                             const at::Tensor& index, at::IntArrayRef num_cells) {
    check_group_by_cell(points, boxes, start, length, index, num_cells);
    const CurrentStream stream(points);
    const CellGrid grid{num_cells[0], num_cells[1], num_cells[2]};
    const at::Tensor positions = points.contiguous(), rows = boxes.contiguous();
    const at::Tensor starts = start.contiguous(), lengths = length.contiguous(), entries = index.contiguous();
    const int64_t total = entries.size(0);
    at::Tensor count = at::zeros({rows.size(0) * grid.total()}, entries.options());
    at::Tensor cell = at::full({total}, -1, entries.options()), rank = at::empty_like(cell);
    at::Tensor members = at::full({total}, -1, entries.options());
    AT_DISPATCH_FLOATING_TYPES(points.scalar_type(), "group_by_cell", [&] {
        const BoxLists<scalar_t> lists{positions.const_data_ptr<scalar_t>(),
                                       rows.const_data_ptr<scalar_t>(),
                                       starts.const_data_ptr<int64_t>(),
                                       lengths.const_data_ptr<int64_t>(),
                                       entries.const_data_ptr<int64_t>(),
                                       positions.size(0),
                                       rows.size(0),
                                       total};
        rank_in_cells_cuda(lists, grid, count.mutable_data_ptr<int64_t>(), cell.mutable_data_ptr<int64_t>(),
                           rank.mutable_data_ptr<int64_t>(), stream);
    });
    const at::Tensor first = count.cumsum(0) - count;
    place_members_cuda(entries.const_data_ptr<int64_t>(), cell.const_data_ptr<int64_t>(),
                       rank.const_data_ptr<int64_t>(), first.const_data_ptr<int64_t>(), total,
                       members.mutable_data_ptr<int64_t>(), stream);
    return {first, count, members};
}

}  // namespace

TORCH_LIBRARY_IMPL(cakdp, CAKDP_DEVICE, m) { m.impl("group_by_cell", group_by_cell); }

}  // namespace cakdp
