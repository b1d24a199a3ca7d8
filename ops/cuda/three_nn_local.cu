// A thread a centre. Neighbouring threads have a list in common, so that one read serves them all.
#include "three_nn_local.h"

#include "box.h"
#include "launch.h"
#include "distance.h"
#include "three_nearest.h"

namespace cakdp {
namespace {

template <typename T>
__global__ void find_three(const T* points, const T* centers, PointLists lists, int64_t per_list, T* distance_squared,
                           int64_t* nearest) {
    const int64_t center = thread_index();
    if (center >= lists.num_lists * per_list) return;
    const int64_t list = center / per_list;
    const int64_t begin = clamped<int64_t>(lists.start[list], 0, lists.total);
    const int64_t end = begin + clamped<int64_t>(lists.length[list], 0, lists.total - begin);
    const T position[3] = {centers[3 * center], centers[3 * center + 1], centers[3 * center + 2]};
    Three<T> found;
    for (int64_t k = begin; k < end; ++k) {
        const int64_t point = lists.index[k];
        if (point < 0 || point >= lists.num_points) continue;
        const T* xyz = points + 3 * point;
        found.offer(squared_length(xyz[0] - position[0], xyz[1] - position[1], xyz[2] - position[2]), k);
    }
    for (int i = 0; i < 3; ++i) {
        distance_squared[3 * center + i] = found.squared[i];
        nearest[3 * center + i] = found.row[i] < 0 ? -1 : lists.index[found.row[i]];
    }
}

}  // namespace

template <typename T>
void three_nn_local_cuda(const T* points, const T* centers, const PointLists& lists, int64_t per_list,
                         T* distance_squared, int64_t* nearest, cudaStream_t stream) {
    launch(find_three<T>, blocks_for(lists.num_lists * per_list), dim3(kThreads), stream, points, centers, lists,
           per_list, distance_squared, nearest);
}

template void three_nn_local_cuda(const float*, const float*, const PointLists&, int64_t, float*, int64_t*,
                                  cudaStream_t);
template void three_nn_local_cuda(const double*, const double*, const PointLists&, int64_t, double*, int64_t*,
                                  cudaStream_t);

}  // namespace cakdp
