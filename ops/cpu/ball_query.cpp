// The first points, in the order of the rows, nearer than some radii to each query.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

#include "buckets.h"
#include "checks/ball_query.h"
#include "frame_starts.h"

namespace cakdp {
namespace {

constexpr int64_t kQueriesPerTask = 64;

template <typename T>
struct Ball {
    T radius_squared;
    int64_t num_samples;
    int64_t* index;
    bool* empty;
};

// The lowest of the rows seen so far, a little more than the number asked for.
class LowestRows {
  public:
    explicit LowestRows(int64_t number) : number_(number), rows_(2 * number + kBucket) {}

    void clear() {
        found_ = 0;
        limit_ = std::numeric_limits<int64_t>::max();
    }

    // Takes in the rows of a bucket whose points are near.
    template <typename T>
    void offer(const int64_t* rows, const T* squared, T radius_squared) {
        for (int64_t i = 0; i < kBucket; ++i) {
            rows_[found_] = rows[i];
            found_ += (squared[i] < radius_squared) & (rows[i] < limit_);
        }
        if (found_ > 2 * number_) {
            keep_lowest();
            limit_ = rows_[number_ - 1];
        }
    }

    // Writes the lowest in order and returns whether there are any.
    bool write(int64_t start, int64_t* out) {
        if (found_ > number_) keep_lowest();
        std::sort(rows_.begin(), rows_.begin() + found_);
        for (int64_t i = 0; i < number_; ++i) out[i] = found_ > 0 ? start + rows_[i < found_ ? i : 0] : 0;
        return found_ > 0;
    }

  private:
    void keep_lowest() {
        std::nth_element(rows_.begin(), rows_.begin() + number_ - 1, rows_.begin() + found_);
        found_ = number_;
    }

    int64_t number_, found_ = 0, limit_ = 0;
    std::vector<int64_t> rows_;
};

// What one thread needs to answer queries one after another.
template <typename T>
class Finder {
  public:
    explicit Finder(const std::vector<Ball<T>>& balls) : balls_(balls) {
        for (const Ball<T>& ball : balls) {
            largest_ = larger(largest_, ball.radius_squared);
            lowest_.emplace_back(ball.num_samples);
        }
    }

    void answer(int64_t i, const T* query, const Buckets<T>& cloud, int64_t start) {
        for (LowestRows& lowest : lowest_) lowest.clear();
        possible_.resize(cloud.num_buckets);
        cloud.nearest_possible(query[0], query[1], query[2], possible_.data());
        for (int64_t b = 0; b < cloud.num_buckets; ++b)
            if (possible_[b] < largest_) look(cloud, b, query);
        for (size_t k = 0; k < balls_.size(); ++k)
            balls_[k].empty[i] = !lowest_[k].write(start, balls_[k].index + i * balls_[k].num_samples);
    }

  private:
    void look(const Buckets<T>& cloud, int64_t bucket, const T* query) {
        T squared[kBucket];
        cloud.distances(bucket, query[0], query[1], query[2], squared);
        for (size_t k = 0; k < balls_.size(); ++k)
            if (possible_[bucket] < balls_[k].radius_squared)
                lowest_[k].offer(&cloud.rows[bucket * kBucket], squared, balls_[k].radius_squared);
    }

    const std::vector<Ball<T>>& balls_;
    T largest_ = 0;
    std::vector<LowestRows> lowest_;
    std::vector<T> possible_;
};

template <typename T>
void answer(const std::vector<Buckets<T>>& clouds, const std::vector<int64_t>& starts, const T* queries,
            const std::vector<int64_t>& query_starts, const std::vector<Ball<T>>& balls) {
    at::parallel_for(0, query_starts.back(), kQueriesPerTask, [&](int64_t begin, int64_t end) {
        Finder<T> finder(balls);
        for (int64_t i = begin; i < end; ++i) {
            const int64_t frame = frame_of(query_starts, i);
            finder.answer(i, queries + 3 * i, clouds[frame], starts[frame]);
        }
    });
}

using Answers = std::tuple<std::vector<at::Tensor>, std::vector<at::Tensor>>;  // index and empty, a radius each

Answers ball_query(const at::Tensor& xyz, const at::Tensor& counts, const at::Tensor& new_xyz,
                   const at::Tensor& new_counts, at::ArrayRef<double> radii, at::IntArrayRef num_samples) {
    check_ball_query(xyz, counts, new_xyz, new_counts, radii, num_samples);
    const std::vector<int64_t> starts = frame_starts(counts, xyz.size(0), "counts");
    const std::vector<int64_t> query_starts = frame_starts(new_counts, new_xyz.size(0), "new_counts");
    const at::Tensor points = xyz.contiguous(), queries = new_xyz.contiguous();
    std::vector<at::Tensor> index, empty;
    for (const int64_t number : num_samples) {
        index.push_back(at::empty({new_xyz.size(0), number}, counts.options()));
        empty.push_back(at::empty({new_xyz.size(0)}, counts.options().dtype(at::kBool)));
    }
    AT_DISPATCH_FLOATING_TYPES(xyz.scalar_type(), "ball_query", [&] {
        std::vector<Ball<scalar_t>> balls;
        for (size_t i = 0; i < radii.size(); ++i)
            balls.push_back({static_cast<scalar_t>(radii[i] * radii[i]), num_samples[i],
                             index[i].mutable_data_ptr<int64_t>(), empty[i].mutable_data_ptr<bool>()});
        answer(make_buckets(points.const_data_ptr<scalar_t>(), starts), starts, queries.const_data_ptr<scalar_t>(),
               query_starts, balls);
    });
    return {index, empty};
}

}  // namespace

TORCH_LIBRARY_IMPL(cakdp, CPU, m) { m.impl("ball_query", ball_query); }

}  // namespace cakdp
