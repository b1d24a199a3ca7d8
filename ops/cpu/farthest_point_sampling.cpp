// Points of each cloud, each the farthest from all that were chosen before it. A choice changes the distances of the
// points around it only, so each step measures the few buckets that the newest choice can come nearer to.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <limits>
#include <vector>

#include "buckets.h"
#include "checks/farthest_point_sampling.h"
#include "frame_starts.h"

namespace cakdp {
namespace {

template <typename T>
class FarthestPoints {
  public:
    FarthestPoints(const T* xyz, int64_t count)
        : buckets_(xyz, count),
          nearest_(buckets_.rows.size(), std::numeric_limits<T>::infinity()),
          farthest_(buckets_.num_buckets, std::numeric_limits<T>::infinity()),
          possible_(buckets_.num_buckets) {
        std::fill(nearest_.begin() + buckets_.num_points, nearest_.end(), kTaken);
    }

    int64_t num_points() const { return buckets_.num_points; }

    // Takes the next point, while there are some, and returns its row in the cloud.
    int64_t take() {
        const int64_t place = farthest_place();
        const T x = buckets_.x[place], y = buckets_.y[place], z = buckets_.z[place];
        nearest_[place] = kTaken;
        buckets_.nearest_possible(x, y, z, possible_.data());
        for (int64_t b = 0; b < buckets_.num_buckets; ++b)
            if (possible_[b] < farthest_[b]) approach(b, x, y, z);
        if (farthest_[place / kBucket] == 0) approach(place / kBucket, x, y, z);
        return buckets_.rows[place];
    }

  private:
    static constexpr T kTaken = -1;

    // Where the point lies that is farthest from those taken, of equals the one with the lowest row.
    int64_t farthest_place() const {
        const T most = maximum(farthest_.data(), buckets_.num_buckets);
        int64_t found = -1;
        for (int64_t b = 0; b < buckets_.num_buckets; ++b) {
            if (farthest_[b] != most) continue;
            for (int64_t i = b * kBucket; i < (b + 1) * kBucket; ++i)
                if (nearest_[i] == most && (found < 0 || buckets_.rows[i] < buckets_.rows[found])) found = i;
        }
        return found;
    }

    // Brings the distances of a bucket's points up to date with a new choice.
    void approach(int64_t bucket, T x, T y, T z) {
        T squared[kBucket];
        buckets_.distances(bucket, x, y, z, squared);
        T* nearest = &nearest_[bucket * kBucket];
        for (int64_t i = 0; i < kBucket; ++i) nearest[i] = squared[i] < nearest[i] ? squared[i] : nearest[i];
        farthest_[bucket] = maximum(nearest, kBucket);
    }

    static T maximum(const T* values, int64_t count) {
        T most = kTaken;
#pragma omp simd reduction(max : most)
        for (int64_t i = 0; i < count; ++i) most = values[i] > most ? values[i] : most;
        return most;
    }

    Buckets<T> buckets_;
    std::vector<T> nearest_;   // squared distance of each point to the nearest taken
    std::vector<T> farthest_;  // the largest of them in each bucket
    std::vector<T> possible_;
};

template <typename T>
void sample(const T* xyz, int64_t start, int64_t count, int64_t num_samples, int64_t* out) {
    FarthestPoints<T> points(xyz + 3 * start, count);
    const int64_t usable = points.num_points();
    for (int64_t i = 0; i < num_samples; ++i)
        out[i] = usable == 0 ? start + i % count : i < usable ? start + points.take() : out[i - usable];
}

at::Tensor farthest_point_sampling(const at::Tensor& xyz, const at::Tensor& counts, at::IntArrayRef num_samples) {
    check_farthest_point_sampling(xyz, counts, num_samples);
    const std::vector<int64_t> starts = frame_starts(counts, xyz.size(0), "counts");
    std::vector<int64_t> first_sample{0};
    for (size_t i = 0; i < num_samples.size(); ++i) {
        TORCH_CHECK_VALUE(num_samples[i] == 0 || starts[i + 1] > starts[i], "cannot choose ", num_samples[i],
                          " of the points of cloud ", i, ", it has none");
        first_sample.push_back(first_sample.back() + num_samples[i]);
    }
    const at::Tensor positions = xyz.contiguous();
    at::Tensor chosen = at::empty({first_sample.back()}, counts.options());
    AT_DISPATCH_FLOATING_TYPES(xyz.scalar_type(), "farthest_point_sampling", [&] {
        const scalar_t* points = positions.const_data_ptr<scalar_t>();
        int64_t* out = chosen.mutable_data_ptr<int64_t>();
        at::parallel_for(0, counts.size(0), 1, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i)
                if (num_samples[i] > 0)
                    sample(points, starts[i], starts[i + 1] - starts[i], num_samples[i], out + first_sample[i]);
        });
    });
    return chosen;
}

}  // namespace

TORCH_LIBRARY_IMPL(cakdp, CPU, m) { m.impl("farthest_point_sampling", farthest_point_sampling); }

}  // namespace cakdp
