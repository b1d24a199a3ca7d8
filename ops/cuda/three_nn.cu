// A warp an unknown point: its lanes measure 32 known points at a time; a vote shows which of them come nearer than the
// third, few after the first rounds, and all lanes take those in.
#include "three_nn.h"

#include "cloud_scan.h"
#include "launch.h"
#include "three_nearest.h"
#include "warp.h"

namespace cakdp {
namespace {

template <typename T>
__global__ void find_three(const T* unknown, const T* known, Stacks stacks, T* distances, int64_t* index) {
    const int64_t point = warp_index();
    if (point >= stacks.num_queries) return;
    const T position[3] = {unknown[3 * point], unknown[3 * point + 1], unknown[3 * point + 2]};
    const auto [begin, end] = points_of_frame(stacks, point);
    Three<T> nearest;
    for (int64_t first = begin; first < end; first += kScan) {
        T squared[kRounds];
        measure(known, stacks.num_points, first, end, position, squared);
#pragma unroll
        for (int round = 0; round < kRounds; ++round) {
            unsigned votes = __ballot_sync(kWholeWarp, squared[round] < nearest.squared[2]);
            for (; votes != 0; votes &= votes - 1) {
                const int from = __ffs(static_cast<int>(votes)) - 1;
                nearest.offer(__shfl_sync(kWholeWarp, squared[round], from), first + from + round * kWarp - begin);
            }
        }
    }
    if (lane() == 0) nearest.write(begin, distances + 3 * point, index + 3 * point);
}

}  // namespace

template <typename T>
void three_nn_cuda(const T* unknown, const T* known, const Stacks& stacks, T* distances, int64_t* index,
                   cudaStream_t stream) {
    launch(find_three<T>, blocks_of_warps(stacks.num_queries, kThreads), dim3(kThreads), stream, unknown, known, stacks,
           distances, index);
}

template void three_nn_cuda(const float*, const float*, const Stacks&, float*, int64_t*, cudaStream_t);
template void three_nn_cuda(const double*, const double*, const Stacks&, double*, int64_t*, cudaStream_t);

}  // namespace cakdp
