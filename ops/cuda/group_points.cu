// A warp a group. Features lie channel by channel and groups sample by sample, so 32 x 32 numbers at a time are turned
// round in shared memory: memory is read and written along neighbouring addresses both ways.
#include "group_points.h"

#include "launch.h"
#include "warp.h"

namespace cakdp {
namespace {

constexpr int kTile = 32;
constexpr int kWarpsPerBlock = 4;

// Walks over a tile of rows x columns numbers, column by column within a row, a step a warp's width.
struct Walk {
    int columns, row, column;
    __device__ explicit Walk(int columns) : columns(columns), row(lane() / columns), column(lane() % columns) {}
    __device__ void step() {
        column += kWarp % columns;
        row += kWarp / columns + (column >= columns);
        if (column >= columns) column -= columns;
    }
};

// Calls visit(first channel, channels, first sample, samples) for the tiles of a group.
template <typename Visit>
__device__ void for_each_tile(const Groups& groups, const Visit& visit) {
    for (int64_t s = 0; s < groups.samples; s += kTile)
        for (int64_t c = 0; c < groups.channels; c += kTile) {
            const int64_t channels = groups.channels - c, samples = groups.samples - s;
            visit(c, static_cast<int>(channels < kTile ? channels : kTile), s,
                  static_cast<int>(samples < kTile ? samples : kTile));
        }
}

template <typename T>
__global__ void gather(const T* features, Groups groups, T* grouped) {
    __shared__ T tiles[kWarpsPerBlock][kTile][kTile + 1];  // [sample][channel]
    T(*tile)[kTile + 1] = tiles[threadIdx.x / kWarp];
    const int64_t group = warp_index();
    if (group >= groups.groups) return;
    const bool empty = groups.empty && groups.empty[group];
    const int64_t* index = groups.index + group * groups.samples;
    for_each_tile(groups, [&](int64_t first_channel, int channels, int64_t first_sample, int samples) {
        for (Walk at(channels); at.row < samples; at.step()) {
            const int64_t row = empty ? -1 : index[first_sample + at.row];
            const bool exists = row >= 0 && row < groups.num_rows;
            tile[at.row][at.column] = exists  ? features[row * groups.channels + first_channel + at.column]
                                      : empty ? T(0)
                                              : T(NAN);
        }
        __syncwarp();
        for (Walk at(samples); at.row < channels; at.step())
            grouped[(group * groups.channels + first_channel + at.row) * groups.samples + first_sample + at.column] =
                tile[at.column][at.row];
        __syncwarp();
    });
}

// Samples that repeat the row before them, as those of groups with few points do, are added up first.
template <typename T>
__device__ void scatter_tile(const T (*tile)[kTile + 1], const int64_t* index, int samples, int64_t num_rows,
                             int64_t channels, T* total) {
    T sum = 0;
    for (int s = 0; s < samples; ++s) {
        const int64_t row = index[s];
        sum += tile[s][lane()];
        if (s + 1 < samples && index[s + 1] == row) continue;
        if (row >= 0 && row < num_rows) atomicAdd(total + row * channels + lane(), sum);
        sum = 0;
    }
}

template <typename T>
__global__ void scatter(const T* grad, Groups groups, T* total) {
    __shared__ T tiles[kWarpsPerBlock][kTile][kTile + 1];
    T(*tile)[kTile + 1] = tiles[threadIdx.x / kWarp];
    const int64_t group = warp_index();
    if (group >= groups.groups || (groups.empty && groups.empty[group])) return;
    const int64_t* index = groups.index + group * groups.samples;
    for_each_tile(groups, [&](int64_t first_channel, int channels, int64_t first_sample, int samples) {
        for (Walk at(samples); at.row < channels; at.step())
            tile[at.column][at.row] =
                grad[(group * groups.channels + first_channel + at.row) * groups.samples + first_sample + at.column];
        __syncwarp();
        if (lane() < channels)
            scatter_tile(tile, index + first_sample, samples, groups.num_rows, groups.channels, total + first_channel);
        __syncwarp();
    });
}

}  // namespace

template <typename T>
void group_points_cuda(const T* features, const Groups& groups, T* grouped, cudaStream_t stream) {
    constexpr int threads = kWarpsPerBlock * kWarp;
    launch(gather<T>, blocks_of_warps(groups.groups, threads), dim3(threads), stream, features, groups, grouped);
}

template <typename T>
void group_points_backward_cuda(const T* grad, const Groups& groups, T* total, cudaStream_t stream) {
    constexpr int threads = kWarpsPerBlock * kWarp;
    launch(scatter<T>, blocks_of_warps(groups.groups, threads), dim3(threads), stream, grad, groups, total);
}

template void group_points_cuda(const float*, const Groups&, float*, cudaStream_t);
template void group_points_cuda(const double*, const Groups&, double*, cudaStream_t);
template void group_points_backward_cuda(const float*, const Groups&, float*, cudaStream_t);
template void group_points_backward_cuda(const double*, const Groups&, double*, cudaStream_t);

}  // namespace cakdp
