// A warp a tile of 32 x 32 pairs, whose boxes it prepares once; most pairs of a scene are far apart, and only have
// their zero written.
#include "boxes_overlap_bev.h"

#include "box_measures.h"
#include "warp_pairs.h"

namespace cakdp {
namespace {

template <class Measure, typename T>
__global__ void __launch_bounds__(kPairThreads)
    compare_tiles(const T* boxes1, const T* boxes2, int64_t rows, int64_t columns, T* out) {
    __shared__ WarpPairs<T> tiles[kPairWarps];
    const int64_t across = (columns + kWarp - 1) / kWarp, tile = warp_index();
    const int64_t first_row = tile / across * kWarp, first_column = tile % across * kWarp;
    if (first_row >= rows) return;
    const int num_rows = static_cast<int>(smaller<int64_t>(kWarp, rows - first_row));
    const int num_columns = static_cast<int>(smaller<int64_t>(kWarp, columns - first_column));
    WarpPairs<T>& pairs = tiles[threadIdx.x / kWarp];
    if (lane() < num_rows) pairs.rows[lane()] = Measure::make(boxes1 + (first_row + lane()) * kBoxNumbers);
    if (lane() < num_columns) pairs.columns[lane()] = Measure::make(boxes2 + (first_column + lane()) * kBoxNumbers);
    __syncwarp();
    const unsigned meeting = pairs.meeting_rows(num_rows, num_columns, T(Measure::kReach));
    T* corner = out + first_row * columns + first_column;
    if (lane() < num_columns)
        for (int r = 0; r < num_rows; ++r)
            if (!(meeting >> r & 1)) corner[r * columns + lane()] = 0;
    const int count = pairs.enqueue(meeting);
    for (int i = lane(); i < count; i += kWarp) {
        const int row = pairs.row_of(pairs.queue[i]), column = pairs.column_of(pairs.queue[i]);
        corner[row * columns + column] = Measure::of(pairs.rows[row], pairs.columns[column]);
    }
}

template <class Measure, typename T>
__global__ void compare_each(const T* boxes1, const T* boxes2, int64_t count, T* out) {
    const int64_t i = thread_index();
    if (i < count)
        out[i] = Measure::of(Measure::make(boxes1 + i * kBoxNumbers), Measure::make(boxes2 + i * kBoxNumbers));
}

template <class Rule, typename T>
auto tiles_kernel(BoxMeasure measure) {
    switch (measure) {
        case BoxMeasure::kOverlapBev:
            return compare_tiles<OverlapBev<Rule>, T>;
        case BoxMeasure::kIouBev:
            return compare_tiles<IouBev<Rule>, T>;
        case BoxMeasure::kIou3d:
            return compare_tiles<Iou3d<Rule>, T>;
        default:
            return compare_tiles<NearestIouBev, T>;
    }
}

template <class Rule, typename T>
auto each_kernel(BoxMeasure measure) {
    switch (measure) {
        case BoxMeasure::kOverlapBev:
            return compare_each<OverlapBev<Rule>, T>;
        case BoxMeasure::kIouBev:
            return compare_each<IouBev<Rule>, T>;
        default:
            return compare_each<Iou3d<Rule>, T>;
    }
}

}  // namespace

template <typename T>
void compare_pairwise_cuda(const T* boxes1, const T* boxes2, int64_t rows, int64_t columns, BoxMeasure measure,
                           bool compat, T* out, cudaStream_t stream) {
    const auto kernel = compat ? tiles_kernel<WithMargin, T>(measure) : tiles_kernel<Exact, T>(measure);
    const int64_t tiles = ((rows + kWarp - 1) / kWarp) * ((columns + kWarp - 1) / kWarp);
    launch(kernel, blocks_of_warps(tiles, kPairThreads), dim3(kPairThreads), stream, boxes1, boxes2, rows, columns,
           out);
}

template <typename T>
void compare_aligned_cuda(const T* boxes1, const T* boxes2, int64_t count, BoxMeasure measure, bool compat, T* out,
                          cudaStream_t stream) {
    const auto kernel = compat ? each_kernel<WithMargin, T>(measure) : each_kernel<Exact, T>(measure);
    launch(kernel, blocks_for(count), dim3(kThreads), stream, boxes1, boxes2, count, out);
}

template void compare_pairwise_cuda(const float*, const float*, int64_t, int64_t, BoxMeasure, bool, float*,
                                    cudaStream_t);
template void compare_pairwise_cuda(const double*, const double*, int64_t, int64_t, BoxMeasure, bool, double*,
                                    cudaStream_t);
template void compare_aligned_cuda(const float*, const float*, int64_t, BoxMeasure, bool, float*, cudaStream_t);
template void compare_aligned_cuda(const double*, const double*, int64_t, BoxMeasure, bool, double*, cudaStream_t);

}  // namespace cakdp
