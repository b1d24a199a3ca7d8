// The three known points of its frame that are nearest to each unknown one.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "buckets.h"
#include "checks/three_nn.h"
#include "frame_starts.h"
#include "three_nearest.h"

namespace cakdp {
namespace {

constexpr int64_t kPointsPerTask = 64;

template <typename T>
void look(const Buckets<T>& cloud, int64_t bucket, const T* point, Three<T>& nearest) {
    T squared[kBucket];
    cloud.distances(bucket, point[0], point[1], point[2], squared);
    for (int64_t i = 0; i < kBucket; ++i)
        if (squared[i] <= nearest.squared[2]) nearest.offer(squared[i], cloud.rows[bucket * kBucket + i]);
}

// The bucket that may hold the nearest point comes first: it shows most others to be too far.
template <typename T>
Three<T> find(const Buckets<T>& cloud, const T* point, std::vector<T>& possible) {
    Three<T> nearest;
    if (cloud.num_buckets == 0) return nearest;
    possible.resize(cloud.num_buckets);
    cloud.nearest_possible(point[0], point[1], point[2], possible.data());
    const int64_t first = std::min_element(possible.begin(), possible.end()) - possible.begin();
    look(cloud, first, point, nearest);
    for (int64_t b = 0; b < cloud.num_buckets; ++b)
        if (possible[b] <= nearest.squared[2] && b != first) look(cloud, b, point, nearest);
    return nearest;
}

std::tuple<at::Tensor, at::Tensor> three_nn(const at::Tensor& unknown, const at::Tensor& unknown_counts,
                                            const at::Tensor& known, const at::Tensor& known_counts) {
    check_three_nn(unknown, unknown_counts, known, known_counts);
    const std::vector<int64_t> unknown_starts = frame_starts(unknown_counts, unknown.size(0), "unknown_counts");
    const std::vector<int64_t> known_starts = frame_starts(known_counts, known.size(0), "known_counts");
    const at::Tensor queries = unknown.contiguous(), points = known.contiguous();
    at::Tensor distances = at::empty({unknown.size(0), 3}, unknown.options());
    at::Tensor index = at::empty({unknown.size(0), 3}, unknown_counts.options());
    AT_DISPATCH_FLOATING_TYPES(unknown.scalar_type(), "three_nn", [&] {
        const auto clouds = make_buckets(points.const_data_ptr<scalar_t>(), known_starts);
        const scalar_t* query = queries.const_data_ptr<scalar_t>();
        scalar_t* distance = distances.mutable_data_ptr<scalar_t>();
        int64_t* row = index.mutable_data_ptr<int64_t>();
        at::parallel_for(0, unknown.size(0), kPointsPerTask, [&](int64_t begin, int64_t end) {
            std::vector<scalar_t> possible;
            for (int64_t i = begin; i < end; ++i) {
                const int64_t frame = frame_of(unknown_starts, i);
                find(clouds[frame], query + 3 * i, possible).write(known_starts[frame], distance + 3 * i, row + 3 * i);
            }
        });
    });
    return {distances, index};
}

}  // namespace

TORCH_LIBRARY_IMPL(cakdp, CPU, m) { m.impl("three_nn", three_nn); }

}  // namespace cakdp
