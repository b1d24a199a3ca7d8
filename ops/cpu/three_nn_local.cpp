// The three nearest of a list of points to each of the centres that go with the list.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "checks/cells.h"
#include "neighbor_lists.h"
#include "distance.h"
#include "three_nearest.h"

namespace cakdp {
namespace {

constexpr int64_t kListsPerTask = 16;

// The points of one list side by side, and their distances from one centre at a time.
template <typename T>
class NearList {
  public:
    NearList(const T* points, const int64_t* begin, const int64_t* end) : begin_(begin), size_(end - begin) {
        numbers_.resize(4 * size_);
        for (int64_t axis = 0; axis < 3; ++axis)
            for (int64_t i = 0; i < size_; ++i) numbers_[axis * size_ + i] = points[3 * begin[i] + axis];
    }

    Three<T> search(const T* center) {
        const T *x = numbers_.data(), *y = x + size_, *z = y + size_;
        T* distance = numbers_.data() + 3 * size_;
        for (int64_t i = 0; i < size_; ++i)
            distance[i] = squared_length(x[i] - center[0], y[i] - center[1], z[i] - center[2]);
        Three<T> found;
        for (int64_t i = 0; i < size_; ++i) found.offer(distance[i], i);
        for (int64_t& row : found.row)
            if (row >= 0) row = begin_[row];
        return found;
    }

  private:
    const int64_t* begin_;
    int64_t size_;
    std::vector<T> numbers_;
};

std::tuple<at::Tensor, at::Tensor> three_nn_local(const at::Tensor& points, const at::Tensor& centers,
                                                  const at::Tensor& start, const at::Tensor& length,
                                                  const at::Tensor& index) {
    check_three_nn_local(points, centers, start, length, index);
    const NeighborLists lists(start, length, index, points.size(0));
    const at::Tensor positions = points.contiguous(), middles = centers.contiguous();
    const int64_t per_list = centers.size(1);
    at::Tensor distance = at::empty({lists.size(), per_list, 3}, points.options());
    at::Tensor nearest = at::empty({lists.size(), per_list, 3}, index.options());
    AT_DISPATCH_FLOATING_TYPES(points.scalar_type(), "three_nn_local", [&] {
        const scalar_t *xyz = positions.const_data_ptr<scalar_t>(), *middle = middles.const_data_ptr<scalar_t>();
        scalar_t* distances = distance.mutable_data_ptr<scalar_t>();
        int64_t* rows = nearest.mutable_data_ptr<int64_t>();
        at::parallel_for(0, lists.size(), kListsPerTask, [&](int64_t begin, int64_t end) {
            for (int64_t list = begin; list < end; ++list) {
                NearList<scalar_t> near(xyz, lists.begin(list), lists.end(list));
                for (int64_t i = list * per_list; i < (list + 1) * per_list; ++i) {
                    const auto found = near.search(middle + 3 * i);
                    std::copy_n(found.squared, 3, distances + 3 * i);
                    std::copy_n(found.row, 3, rows + 3 * i);
                }
            }
        });
    });
    return {distance, nearest};
}

}  // namespace

TORCH_LIBRARY_IMPL(cakdp, CPU, m) { m.impl("three_nn_local", three_nn_local); }

}  // namespace cakdp
