// A thread a point; the boxes of its frame pass through shared memory, a tile at a time.
#include "points_in_boxes.h"

#include "box.h"
#include "launch.h"

namespace cakdp {
namespace {

constexpr int kTile = 64;

template <typename T>
__global__ void find_holders(const T* points, const T* boxes, int64_t num_points, int64_t num_boxes, int64_t* holder) {
    __shared__ T tile[kTile * sizeof(Box<T>) / sizeof(T)];
    Box<T>* prepared = reinterpret_cast<Box<T>*>(tile);
    const int64_t point = thread_index(), frame = blockIdx.y;
    const bool is_point = point < num_points;
    const T* position = points + 3 * (frame * num_points + point);
    const T x = is_point ? position[0] : T(0), y = is_point ? position[1] : T(0), z = is_point ? position[2] : T(0);
    int64_t found = -1;
    for (int64_t first = 0; first < num_boxes; first += kTile) {
        const int count = static_cast<int>(smaller<int64_t>(kTile, num_boxes - first));
        __syncthreads();
        for (int i = threadIdx.x; i < count; i += blockDim.x)
            prepared[i] = make_box(boxes + kBoxNumbers * (frame * num_boxes + first + i));
        __syncthreads();
        for (int i = 0; i < count && found < 0; ++i)
            if (prepared[i].holds(x, y, z)) found = first + i;
    }
    if (is_point) holder[frame * num_points + point] = found;
}

}  // namespace

template <typename T>
void points_in_boxes_cuda(const T* points, const T* boxes, int64_t frames, int64_t num_points, int64_t num_boxes,
                          int64_t* holder, cudaStream_t stream) {
    dim3 blocks = blocks_for(num_points);
    blocks.y = static_cast<unsigned>(frames);
    launch(find_holders<T>, blocks, dim3(kThreads), stream, points, boxes, num_points, num_boxes, holder);
}

template void points_in_boxes_cuda(const float*, const float*, int64_t, int64_t, int64_t, int64_t*, cudaStream_t);
template void points_in_boxes_cuda(const double*, const double*, int64_t, int64_t, int64_t, int64_t*, cudaStream_t);

}  // namespace cakdp
