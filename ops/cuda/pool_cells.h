// Mean and maximum of the features of each cell's points, and their gradients.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace cakdp {

// Which rows of (num_rows, channels) each cell holds: count[cell] members from members[first[cell]] on. Rows that do
// not exist are ignored, as is what reaches beyond num_members.
struct CellLists {
    const int64_t *first, *count, *members;
    int64_t num_cells, num_members, num_rows, channels;
};

// features (num_rows, channels) -> pooled (num_cells, channels), 0 for an empty cell.
template <typename T>
void pool_cells_mean_cuda(const T* features, const CellLists& cells, T* pooled, cudaStream_t stream);

// grad (num_cells, channels) added to grad_features (num_rows, channels), in no fixed order.
template <typename T>
void pool_cells_mean_backward_cuda(const T* grad, const CellLists& cells, T* grad_features, cudaStream_t stream);

// As the mean; winner (num_cells, channels) is the first row with the largest value, -1 for an empty cell.
template <typename T>
void pool_cells_max_cuda(const T* features, const CellLists& cells, T* pooled, int64_t* winner, cudaStream_t stream);

// grad and winner (num_cells, channels); grad added to grad_features (num_rows, channels), in no fixed order.
template <typename T>
void pool_cells_max_backward_cuda(const T* grad, const int64_t* winner, int64_t num_cells, int64_t num_rows,
                                  int64_t channels, T* grad_features, cudaStream_t stream);

}  // namespace cakdp
