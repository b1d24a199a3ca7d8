// Points in slabs across y, each slab sorted along x, so that a search around a position reads only what is near it.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "frames.h"

namespace cakdp {

template <typename T>
class PointSlabs {
  public:
    // Points with a NaN or an infinity are left out.
    PointSlabs(const T* points, Rows rows, double thickness) {
        std::vector<int64_t> finite;
        double high_y = -std::numeric_limits<double>::infinity();
        low_y_ = std::numeric_limits<double>::infinity();
        for (int64_t row = rows.begin; row < rows.end; ++row) {
            const T* xyz = points + 3 * row;
            if (!is_finite(xyz[0]) || !is_finite(xyz[1]) || !is_finite(xyz[2])) continue;
            finite.push_back(row);
            low_y_ = std::min<double>(low_y_, xyz[1]);
            high_y = std::max<double>(high_y, xyz[1]);
        }
        const double wanted = (high_y - low_y_) / thickness;
        const double most = static_cast<double>(std::max<size_t>(1, finite.size()));
        begin_.assign(static_cast<size_t>(wanted > 1 ? std::min(wanted, most) : 1) + 1, 0);
        per_metre_ = wanted > most ? most / (high_y - low_y_) : 1 / thickness;
        fill(points, finite);
    }

    // Calls visit(row) for every point that may lie within reach of a position in the plane.
    template <typename Visit>
    void visit_near(double x, double y, double reach, const Visit& visit) const {
        const double margin = reach * (1 + 1e-5);  // wider than what rounding in T can move
        for (int64_t slab = slab_of(y - margin), last = slab_of(y + margin); slab <= last; ++slab) {
            const auto end = entries_.begin() + begin_[slab + 1];
            const Entry low{static_cast<T>(x - margin), -1};
            for (auto entry = std::lower_bound(entries_.begin() + begin_[slab], end, low);
                 entry != end && entry->first <= x + margin; ++entry)
                visit(entry->second);
        }
    }

  private:
    using Entry = std::pair<T, int64_t>;  // x, row

    int64_t slab_of(double y) const {
        const double slab = (y - low_y_) * per_metre_, most = static_cast<double>(begin_.size() - 2);
        return slab > 0 ? static_cast<int64_t>(std::min(slab, most)) : 0;
    }

    void fill(const T* points, const std::vector<int64_t>& rows) {
        for (const int64_t row : rows) ++begin_[slab_of(points[3 * row + 1]) + 1];
        for (size_t slab = 1; slab < begin_.size(); ++slab) begin_[slab] += begin_[slab - 1];
        std::vector<int64_t> next(begin_.begin(), begin_.end() - 1);
        entries_.resize(rows.size());
        for (const int64_t row : rows) entries_[next[slab_of(points[3 * row + 1])]++] = {points[3 * row], row};
        at::parallel_for(0, static_cast<int64_t>(begin_.size()) - 1, 16, [&](int64_t from, int64_t to) {
            for (int64_t slab = from; slab < to; ++slab)
                std::sort(entries_.begin() + begin_[slab], entries_.begin() + begin_[slab + 1]);
        });
    }

    double low_y_, per_metre_;
    std::vector<int64_t> begin_;
    std::vector<Entry> entries_;
};

}  // namespace cakdp
