// Points in slabs across y, each slab sorted along x, so that a search around a position reads only what is near it.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
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

    struct Entry {
        T x, y, z;
        int64_t row;
    };

    // Calls visit(entry) for every point that may lie within reach of a position in the plane.
    template <typename Visit>
    void visit_near(double x, double y, double reach_x, double reach_y, const Visit& visit) const {
        const double margin_x = reach_x * kMargin, margin_y = reach_y * kMargin;
        const auto is_before = [](const Entry& entry, T low) { return entry.x < low; };
        for (int64_t slab = slab_of(y - margin_y), last = slab_of(y + margin_y); slab <= last; ++slab) {
            const auto end = entries_.begin() + begin_[slab + 1];
            auto entry =
                std::lower_bound(entries_.begin() + begin_[slab], end, static_cast<T>(x - margin_x), is_before);
            for (; entry != end && entry->x <= x + margin_x; ++entry) visit(*entry);
        }
    }

  private:
    static constexpr double kMargin = 1 + 1e-5;  // more than what rounding in T can move a point

    int64_t slab_of(double y) const {
        const double slab = (y - low_y_) * per_metre_, most = static_cast<double>(begin_.size() - 2);
        return slab > 0 ? static_cast<int64_t>(std::min(slab, most)) : 0;
    }

    void fill(const T* points, const std::vector<int64_t>& rows) {
        for (const int64_t row : rows) ++begin_[slab_of(points[3 * row + 1]) + 1];
        for (size_t slab = 1; slab < begin_.size(); ++slab) begin_[slab] += begin_[slab - 1];
        std::vector<int64_t> next(begin_.begin(), begin_.end() - 1);
        entries_.resize(rows.size());
        for (const int64_t row : rows) {
            const T* xyz = points + 3 * row;
            entries_[next[slab_of(xyz[1])]++] = {xyz[0], xyz[1], xyz[2], row};
        }
        const auto by_x = [](const Entry& a, const Entry& b) { return a.x < b.x; };
        at::parallel_for(0, static_cast<int64_t>(begin_.size()) - 1, 16, [&](int64_t from, int64_t to) {
            for (int64_t slab = from; slab < to; ++slab)
                std::sort(entries_.begin() + begin_[slab], entries_.begin() + begin_[slab + 1], by_x);
        });
    }

    double low_y_, per_metre_;
    std::vector<int64_t> begin_;
    std::vector<Entry> entries_;
};

}  // namespace cakdp
