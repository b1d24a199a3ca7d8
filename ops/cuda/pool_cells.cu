// A group of threads a cell, a power of two, side by side along the channels: every read and write is of whole rows.
#include "pool_cells.h"

#include "box.h"
#include "exceeds.h"
#include "launch.h"

namespace cakdp {
namespace {

// The cell and the first channel of a thread, and how far apart its channels are.
struct Place {
    int64_t cell, channel, step;
};

__device__ inline Place place_of(int lanes_log2) {
    const int64_t thread = thread_index();
    return {thread >> lanes_log2, thread & ((1 << lanes_log2) - 1), 1 << lanes_log2};
}

__device__ inline int64_t members_of(const CellLists& cells, int64_t cell, const int64_t*& members) {
    const int64_t first = clamped<int64_t>(cells.first[cell], 0, cells.num_members);
    members = cells.members + first;
    return clamped<int64_t>(cells.count[cell], 0, cells.num_members - first);
}

__device__ inline bool exists(const CellLists& cells, int64_t row) { return row >= 0 && row < cells.num_rows; }

template <typename T>
__global__ void mean_of_cells(const T* features, CellLists cells, int lanes_log2, T* pooled) {
    const Place place = place_of(lanes_log2);
    if (place.cell >= cells.num_cells) return;
    const int64_t* members;
    const int64_t count = members_of(cells, place.cell, members);
    for (int64_t c = place.channel; c < cells.channels; c += place.step) {
        T sum = 0;
        for (int64_t i = 0; i < count; ++i)
            if (exists(cells, members[i])) sum += features[members[i] * cells.channels + c];
        pooled[place.cell * cells.channels + c] = count > 1 ? sum / static_cast<T>(count) : sum;
    }
}

template <typename T>
__global__ void spread_mean(const T* grad, CellLists cells, int lanes_log2, T* grad_features) {
    const Place place = place_of(lanes_log2);
    if (place.cell >= cells.num_cells) return;
    const int64_t* members;
    const int64_t count = members_of(cells, place.cell, members);
    for (int64_t c = place.channel; c < cells.channels && count > 0; c += place.step) {
        const T share = grad[place.cell * cells.channels + c] / static_cast<T>(count);
        for (int64_t i = 0; i < count; ++i)
            if (exists(cells, members[i])) atomicAdd(grad_features + members[i] * cells.channels + c, share);
    }
}

template <typename T>
__global__ void largest_of_cells(const T* features, CellLists cells, int lanes_log2, T* pooled, int64_t* winner) {
    const Place place = place_of(lanes_log2);
    if (place.cell >= cells.num_cells) return;
    const int64_t* members;
    const int64_t count = members_of(cells, place.cell, members);
    for (int64_t c = place.channel; c < cells.channels; c += place.step) {
        T best = 0;
        int64_t best_row = -1;
        for (int64_t i = 0; i < count; ++i) {
            if (!exists(cells, members[i])) continue;
            const T value = features[members[i] * cells.channels + c];
            if (best_row >= 0 && !exceeds(value, best)) continue;
            best = value;
            best_row = members[i];
        }
        pooled[place.cell * cells.channels + c] = best;
        winner[place.cell * cells.channels + c] = best_row;
    }
}

template <typename T>
__global__ void spread_to_winners(const T* grad, const int64_t* winner, int64_t num_cells, int64_t num_rows,
                                  int64_t channels, int lanes_log2, T* grad_features) {
    const Place place = place_of(lanes_log2);
    if (place.cell >= num_cells) return;
    for (int64_t c = place.channel; c < channels; c += place.step) {
        const int64_t row = winner[place.cell * channels + c];
        if (row >= 0 && row < num_rows) atomicAdd(grad_features + row * channels + c, grad[place.cell * channels + c]);
    }
}

// Threads a cell: enough for its channels, at most a warp; a grid that leaves none where there is no channel.
int lanes_log2(int64_t channels) {
    int log2 = 0;
    while (log2 < 5 && (1 << log2) < channels) ++log2;
    return log2;
}

dim3 blocks_of(int64_t num_cells, int64_t channels) {
    return blocks_for(channels > 0 ? num_cells << lanes_log2(channels) : 0);
}

}  // namespace

template <typename T>
void pool_cells_mean_cuda(const T* features, const CellLists& cells, T* pooled, cudaStream_t stream) {
    launch(mean_of_cells<T>, blocks_of(cells.num_cells, cells.channels), dim3(kThreads), stream, features, cells,
           lanes_log2(cells.channels), pooled);
}

template <typename T>
void pool_cells_mean_backward_cuda(const T* grad, const CellLists& cells, T* grad_features, cudaStream_t stream) {
    launch(spread_mean<T>, blocks_of(cells.num_cells, cells.channels), dim3(kThreads), stream, grad, cells,
           lanes_log2(cells.channels), grad_features);
}

template <typename T>
void pool_cells_max_cuda(const T* features, const CellLists& cells, T* pooled, int64_t* winner, cudaStream_t stream) {
    launch(largest_of_cells<T>, blocks_of(cells.num_cells, cells.channels), dim3(kThreads), stream, features, cells,
           lanes_log2(cells.channels), pooled, winner);
}

template <typename T>
void pool_cells_max_backward_cuda(const T* grad, const int64_t* winner, int64_t num_cells, int64_t num_rows,
                                  int64_t channels, T* grad_features, cudaStream_t stream) {
    launch(spread_to_winners<T>, blocks_of(num_cells, channels), dim3(kThreads), stream, grad, winner, num_cells,
           num_rows, channels, lanes_log2(channels), grad_features);
}

#define CAKDP_INSTANTIATE(T)                                                                   \
    template void pool_cells_mean_cuda(const T*, const CellLists&, T*, cudaStream_t);          \
    template void pool_cells_mean_backward_cuda(const T*, const CellLists&, T*, cudaStream_t); \
    template void pool_cells_max_cuda(const T*, const CellLists&, T*, int64_t*, cudaStream_t); \
    template void pool_cells_max_backward_cuda(const T*, const int64_t*, int64_t, int64_t, int64_t, T*, cudaStream_t);
CAKDP_INSTANTIATE(float)
CAKDP_INSTANTIATE(double)
#undef CAKDP_INSTANTIATE

}  // namespace cakdp
