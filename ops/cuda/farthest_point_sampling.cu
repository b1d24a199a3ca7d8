// A block a cloud. Its points lie sorted along a space-filling curve, in as many buckets of neighbours as the block has
// threads. Each thread keeps the bounds of a bucket and its farthest point in registers; a choice changes the distances
// of the points around it only, so each step measures the few buckets that the newest choice can come nearer to, a warp
// a bucket, and then waits once for the farthest point of all.
#include "farthest_point_sampling.h"

#include <cmath>

#include "distance.h"
#include "frames.h"
#include "launch.h"
#include "morton.h"
#include "warp.h"

namespace cakdp {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kMaxWarps = kMaxThreads / kWarp;
constexpr int64_t kNotFinite = int64_t{1} << (3 * kCurveBits);
constexpr int64_t kNextCloud = kNotFinite << 1;
constexpr int64_t kNoRow = INT64_MAX;

template <typename T>
__global__ void find_keys(const T* xyz, const T* low, const T* high, const int64_t* starts, int64_t num_points,
                          int64_t clouds, int64_t* keys) {
    const int64_t point = thread_index();
    if (point >= num_points) return;
    const T* position = xyz + 3 * point;
    const T sum = (position[0] - position[0]) + (position[1] - position[1]) + (position[2] - position[2]);
    const int64_t place = sum == 0 ? curve_place(position, low, high) : kNotFinite;
    keys[point] = frame_of(starts, clouds, point) * kNextCloud + place;
}

// A point that may be chosen; distance -1 where it has been, -2 where there is none.
template <typename T>
struct Candidate {
    T distance, x, y, z;
    int64_t row;

    __device__ bool precedes(T other_distance, int64_t other_row) const {
        return distance > other_distance || (distance == other_distance && row < other_row);
    }
};

template <typename T>
__device__ Candidate<T> no_candidate() {
    return {T(-2), T(0), T(0), T(0), kNoRow};
}

// Among the candidates of a warp's lanes the one to choose, known to all lanes.
template <typename T>
__device__ Candidate<T> first_of_warp(const Candidate<T>& own) {
    T distance = own.distance;
    int64_t row = own.row;
    for (int mask = kWarp / 2; mask > 0; mask /= 2) {
        const T other_distance = __shfl_xor_sync(kWholeWarp, distance, mask);
        const int64_t other_row = __shfl_xor_sync(kWholeWarp, row, mask);
        if (other_distance > distance || (other_distance == distance && other_row < row))
            distance = other_distance, row = other_row;
    }
    const int owner = __ffs(static_cast<int>(__ballot_sync(kWholeWarp, own.row == row))) - 1;
    return {distance, __shfl_sync(kWholeWarp, own.x, owner), __shfl_sync(kWholeWarp, own.y, owner),
            __shfl_sync(kWholeWarp, own.z, owner), row};
}

// Among those of a block's threads, known to all threads. One barrier: the next call must bring other leaders.
template <typename T>
__device__ Candidate<T> first_of_block(const Candidate<T>& own, Candidate<T>* leaders) {
    const Candidate<T> leader = first_of_warp(own);
    if (lane() == 0) leaders[threadIdx.x / kWarp] = leader;
    __syncthreads();
    const bool exists = lane() < static_cast<int>(blockDim.x / kWarp);
    return first_of_warp(exists ? leaders[lane()] : no_candidate<T>());
}

// A cloud as one block sees it: sorted points from begin on.
template <typename T>
struct Cloud {
    const T *x, *y, *z;
    const int64_t* rows;
    T* nearest;  // squared distance of each point to the nearest chosen
    int64_t count;
};

// Neighbouring points begin .. end - 1 and their bounds.
template <typename T>
struct Bucket {
    int64_t begin, end;
    T low[3], high[3];

    __device__ T squared_gap(const Candidate<T>& from) const {
        return squared_length(gap(low[0], high[0], from.x), gap(low[1], high[1], from.y), gap(low[2], high[2], from.z));
    }
};

// Bounds the points of a bucket, marks them as far from all choices, and returns the one with the lowest row.
template <typename T>
__device__ Candidate<T> open_bucket(const Cloud<T>& cloud, Bucket<T>& bucket) {
    Candidate<T> first = no_candidate<T>();
    for (int axis = 0; axis < 3; ++axis) bucket.low[axis] = T(INFINITY), bucket.high[axis] = -T(INFINITY);
    for (int64_t i = bucket.begin; i < bucket.end; ++i) {
        const T point[3] = {cloud.x[i], cloud.y[i], cloud.z[i]};
        for (int axis = 0; axis < 3; ++axis) {
            bucket.low[axis] = point[axis] < bucket.low[axis] ? point[axis] : bucket.low[axis];
            bucket.high[axis] = point[axis] > bucket.high[axis] ? point[axis] : bucket.high[axis];
        }
        cloud.nearest[i] = T(INFINITY);
        if (cloud.rows[i] < first.row) first = {T(INFINITY), point[0], point[1], point[2], cloud.rows[i]};
    }
    return first;
}

// The warp brings the distances of a bucket's points up to date with a choice and finds the farthest.
template <typename T>
__device__ Candidate<T> approach(const Cloud<T>& cloud, int64_t begin, int64_t end, const Candidate<T>& choice) {
    Candidate<T> own = no_candidate<T>();
    for (int64_t i = begin + lane(); i < end; i += kWarp) {
        const T x = cloud.x[i], y = cloud.y[i], z = cloud.z[i];
        const int64_t row = cloud.rows[i];
        const T squared = squared_length(x - choice.x, y - choice.y, z - choice.z), before = cloud.nearest[i];
        const T distance = row == choice.row ? T(-1) : squared < before ? squared : before;
        cloud.nearest[i] = distance;
        if (!own.precedes(distance, row)) own = {distance, x, y, z, row};
    }
    return first_of_warp(own);
}

// Approaches the buckets of this warp's lanes that a choice may change; own is the candidate of each lane's bucket.
template <typename T>
__device__ void approach_buckets(const Cloud<T>& cloud, const Bucket<T>& bucket, const Candidate<T>& choice,
                                 Candidate<T>& own) {
    const bool changes = bucket.squared_gap(choice) < own.distance || own.row == choice.row;
    unsigned votes = __ballot_sync(kWholeWarp, bucket.begin < bucket.end && changes);
    for (; votes != 0; votes &= votes - 1) {
        const int from = __ffs(static_cast<int>(votes)) - 1;
        const Candidate<T> farthest = approach(cloud, __shfl_sync(kWholeWarp, bucket.begin, from),
                                               __shfl_sync(kWholeWarp, bucket.end, from), choice);
        if (lane() == from) own = farthest;
    }
}

// Chooses points of a cloud until all have been or num_samples are.
template <typename T>
__device__ void choose(const Cloud<T>& cloud, int64_t num_samples, int64_t* chosen) {
    __shared__ Candidate<T> leaders[2][kMaxWarps];
    const int64_t threads = blockDim.x, warps = threads / kWarp;
    const int64_t rounds = (cloud.count + threads * kWarp - 1) / (threads * kWarp);
    const int64_t number = lane() * warps + threadIdx.x / kWarp;  // neighbouring buckets go to different warps
    const int64_t begin = number * rounds * kWarp, end = begin + rounds * kWarp;
    Bucket<T> bucket;
    bucket.begin = begin < cloud.count ? begin : cloud.count;
    bucket.end = end < cloud.count ? end : cloud.count;
    Candidate<T> own = open_bucket(cloud, bucket);
    __syncwarp();
    for (int64_t i = 0; i < num_samples && i < cloud.count; ++i) {
        const Candidate<T> choice = first_of_block(own, leaders[i % 2]);
        if (threadIdx.x == 0) chosen[i] = choice.row;
        approach_buckets(cloud, bucket, choice, own);
    }
}

// The number of a cloud's points that are finite: they come first in the order of the keys.
__device__ inline int64_t count_finite(const int64_t* keys, int64_t count, int64_t cloud) {
    int64_t low = 0, high = count;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (keys[middle] < cloud * kNextCloud + kNotFinite) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

template <typename T>
__global__ void __launch_bounds__(kMaxThreads)
    sample_clouds(const T* xyz, const int64_t* rows, const int64_t* keys, const int64_t* starts,
                  const int64_t* first_sample, int64_t num_points, T* nearest, int64_t* chosen) {
    const int64_t cloud = blockIdx.x, start = starts[cloud], count = starts[cloud + 1] - start;
    const int64_t finite = count_finite(keys + start, count, cloud);
    const int64_t num_samples = first_sample[cloud + 1] - first_sample[cloud];
    int64_t* out = chosen + first_sample[cloud];
    const T* x = xyz + start;
    choose(Cloud<T>{x, x + num_points, x + 2 * num_points, rows + start, nearest + start, finite}, num_samples, out);
    __syncthreads();
    for (int64_t i = finite + threadIdx.x; i < num_samples; i += blockDim.x)
        out[i] = finite > 0 ? out[i % finite] : count > 0 ? start + i % count : -1;
}

}  // namespace

template <typename T>
void curve_keys_cuda(const T* xyz, const T* low, const T* high, const int64_t* starts, int64_t num_points,
                     int64_t clouds, int64_t* keys, cudaStream_t stream) {
    launch(find_keys<T>, blocks_for(num_points), dim3(kThreads), stream, xyz, low, high, starts, num_points, clouds,
           keys);
}

template <typename T>
void farthest_point_sampling_cuda(const T* xyz, const int64_t* rows, const int64_t* keys, const int64_t* starts,
                                  const int64_t* first_sample, int64_t num_points, int64_t clouds, T* nearest,
                                  int64_t* chosen, cudaStream_t stream) {
    const int64_t warps = (num_points + kWarp - 1) / kWarp;
    const int threads = static_cast<int>(warps < 1 ? 1 : warps < kMaxWarps ? warps : kMaxWarps) * kWarp;
    launch(sample_clouds<T>, dim3(static_cast<unsigned>(clouds)), dim3(threads), stream, xyz, rows, keys, starts,
           first_sample, num_points, nearest, chosen);
}

template void curve_keys_cuda(const float*, const float*, const float*, const int64_t*, int64_t, int64_t, int64_t*,
                              cudaStream_t);
template void curve_keys_cuda(const double*, const double*, const double*, const int64_t*, int64_t, int64_t, int64_t*,
                              cudaStream_t);
template void farthest_point_sampling_cuda(const float*, const int64_t*, const int64_t*, const int64_t*, const int64_t*,
                                           int64_t, int64_t, float*, int64_t*, cudaStream_t);
template void farthest_point_sampling_cuda(const double*, const int64_t*, const int64_t*, const int64_t*,
                                           const int64_t*, int64_t, int64_t, double*, int64_t*, cudaStream_t);

}  // namespace cakdp
