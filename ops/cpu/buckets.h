// The finite points of a cloud, sorted along a space-filling curve and cut into buckets of neighbours with bounds, so
// that a query looks only into the buckets that may matter to it. Coordinates lie axis by axis for vector instructions.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "box.h"
#include "distance.h"
#include "morton.h"

namespace cakdp {

constexpr int64_t kBucket = 64;

struct Placed {
    int64_t place;  // along the curve
    int64_t row;
};

// Sorts by place, equal ones left in their order; places have 3 * kCurveBits bits.
inline void sort_by_place(std::vector<Placed>& points) {
    constexpr int kDigitBits = 12, kMask = (1 << kDigitBits) - 1;
    std::vector<Placed> next(points.size());
    for (int shift = 0; shift < 3 * kCurveBits; shift += kDigitBits) {
        std::array<int64_t, kMask + 2> begin{};
        for (const Placed& point : points) ++begin[(point.place >> shift & kMask) + 1];
        std::partial_sum(begin.begin(), begin.end(), begin.begin());
        for (const Placed& point : points) next[begin[point.place >> shift & kMask]++] = point;
        points.swap(next);
    }
}

template <typename T>
class Buckets {
  public:
    Buckets() = default;

    Buckets(const T* xyz, int64_t count) {
        const std::vector<Placed> points = sorted_points(xyz, count);
        num_points = static_cast<int64_t>(points.size());
        num_buckets = (num_points + kBucket - 1) / kBucket;
        for (auto* values : {&x, &y, &z}) values->assign(num_buckets * kBucket, std::numeric_limits<T>::quiet_NaN());
        rows.assign(num_buckets * kBucket, -1);
        for (int64_t i = 0; i < num_points; ++i) {
            const T* point = xyz + 3 * points[i].row;
            x[i] = point[0], y[i] = point[1], z[i] = point[2];
            rows[i] = points[i].row;
        }
        bound(x, low_x, high_x);
        bound(y, low_y, high_y);
        bound(z, low_z, high_z);
    }

    // For each bucket a squared distance that no computed one from the position to its points is below.
    void nearest_possible(T px, T py, T pz, T* __restrict squared) const {
        const T *x0 = low_x.data(), *y0 = low_y.data(), *z0 = low_z.data();
        const T *x1 = high_x.data(), *y1 = high_y.data(), *z1 = high_z.data();
        for (int64_t b = 0; b < num_buckets; ++b)
            squared[b] = squared_length(gap(x0[b], x1[b], px), gap(y0[b], y1[b], py), gap(z0[b], z1[b], pz));
    }

    // The squared distances from a position to the kBucket points of a bucket, NaN for those that fill it up.
    void distances(int64_t bucket, T px, T py, T pz, T* squared) const {
        const T *bx = &x[bucket * kBucket], *by = &y[bucket * kBucket], *bz = &z[bucket * kBucket];
        for (int64_t i = 0; i < kBucket; ++i) squared[i] = squared_length(bx[i] - px, by[i] - py, bz[i] - pz);
    }

    int64_t num_points = 0, num_buckets = 0;
    std::vector<T> x, y, z;     // kBucket a bucket, the last one filled up with NaN
    std::vector<int64_t> rows;  // of those points in the cloud, -1 where filled up
    std::vector<T> low_x, high_x, low_y, high_y, low_z, high_z;

  private:
    // The finite points along the curve.
    static std::vector<Placed> sorted_points(const T* xyz, int64_t count) {
        T low[3], high[3];
        std::fill_n(low, 3, std::numeric_limits<T>::max());
        std::fill_n(high, 3, std::numeric_limits<T>::lowest());
        std::vector<Placed> points;
        points.reserve(count);
        for (int64_t i = 0; i < count; ++i) {
            const T* point = xyz + 3 * i;
            if (!is_finite(point[0]) || !is_finite(point[1]) || !is_finite(point[2])) continue;
            points.push_back({0, i});
            for (int axis = 0; axis < 3; ++axis) {
                low[axis] = smaller(low[axis], point[axis]);
                high[axis] = larger(high[axis], point[axis]);
            }
        }
        for (Placed& point : points) point.place = curve_place(xyz + 3 * point.row, low, high);
        sort_by_place(points);
        return points;
    }

    void bound(const std::vector<T>& values, std::vector<T>& low, std::vector<T>& high) const {
        low.resize(num_buckets), high.resize(num_buckets);
        for (int64_t b = 0; b < num_buckets; ++b) {
            const auto begin = values.begin() + b * kBucket,
                       end = values.begin() + smaller((b + 1) * kBucket, num_points);
            const auto [least, most] = std::minmax_element(begin, end);
            low[b] = *least, high[b] = *most;
        }
    }
};

// Those of the frames in a stacked tensor.
template <typename T>
std::vector<Buckets<T>> make_buckets(const T* xyz, const std::vector<int64_t>& starts) {
    std::vector<Buckets<T>> buckets(starts.size() - 1);
    at::parallel_for(0, static_cast<int64_t>(buckets.size()), 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) buckets[i] = Buckets<T>(xyz + 3 * starts[i], starts[i + 1] - starts[i]);
    });
    return buckets;
}

}  // namespace cakdp
