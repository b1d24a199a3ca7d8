// A warp a row, its lanes along the channels: all reads, writes and additions are to neighbouring addresses.
#include "three_interpolate.h"

#include "launch.h"
#include "warp.h"

namespace cakdp {
namespace {

template <typename T>
__global__ void interpolate(const T* features, const int64_t* index, const T* weights, int64_t num_rows,
                            int64_t channels, int64_t count, T* mixed) {
    const int64_t row = warp_index();
    if (row >= count) return;
    const T* source[3];
    T weight[3];
    for (int slot = 0; slot < 3; ++slot) {
        const int64_t at = index[3 * row + slot];
        const bool exists = at >= 0 && at < num_rows;
        source[slot] = features + (exists ? at : 0) * channels;
        weight[slot] = exists ? weights[3 * row + slot] : T(NAN);
    }
    const bool any_rows = num_rows > 0;
    for (int64_t c = lane(); c < channels; c += kWarp)
        mixed[row * channels + c] =
            any_rows ? weight[0] * source[0][c] + weight[1] * source[1][c] + weight[2] * source[2][c] : T(NAN);
}

template <typename T>
__global__ void spread_gradient(const T* grad, const int64_t* index, const T* weights, int64_t num_rows,
                                int64_t channels, int64_t count, T* total) {
    const int64_t row = warp_index();
    if (row >= count) return;
    for (int slot = 0; slot < 3; ++slot) {
        const int64_t at = index[3 * row + slot];
        if (at < 0 || at >= num_rows) continue;
        const T weight = weights[3 * row + slot];
        for (int64_t c = lane(); c < channels; c += kWarp)
            atomicAdd(total + at * channels + c, weight * grad[row * channels + c]);
    }
}

}  // namespace

template <typename T>
void three_interpolate_cuda(const T* features, const int64_t* index, const T* weights, int64_t num_rows,
                            int64_t channels, int64_t count, T* mixed, cudaStream_t stream) {
    launch(interpolate<T>, blocks_of_warps(count, kThreads), dim3(kThreads), stream, features, index, weights, num_rows,
           channels, count, mixed);
}

template <typename T>
void three_interpolate_backward_cuda(const T* grad, const int64_t* index, const T* weights, int64_t num_rows,
                                     int64_t channels, int64_t count, T* total, cudaStream_t stream) {
    launch(spread_gradient<T>, blocks_of_warps(count, kThreads), dim3(kThreads), stream, grad, index, weights, num_rows,
           channels, count, total);
}

template void three_interpolate_cuda(const float*, const int64_t*, const float*, int64_t, int64_t, int64_t, float*,
                                     cudaStream_t);
template void three_interpolate_cuda(const double*, const int64_t*, const double*, int64_t, int64_t, int64_t, double*,
                                     cudaStream_t);
template void three_interpolate_backward_cuda(const float*, const int64_t*, const float*, int64_t, int64_t, int64_t,
                                              float*, cudaStream_t);
template void three_interpolate_backward_cuda(const double*, const int64_t*, const double*, int64_t, int64_t, int64_t,
                                              double*, cudaStream_t);

}  // namespace cakdp
