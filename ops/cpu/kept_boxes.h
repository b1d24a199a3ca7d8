// Boxes kept so far, found again by place. Boxes of like size, within a factor of two, share a grid whose cells are as
// wide as the largest circle in it, so that few are visited that are not near.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <vector>

#include "rectangle_overlap.h"

namespace cakdp {

template <typename T>
class KeptBoxes {
  public:
    // Of count boxes that may be kept; margin is how far apart circles of interest may be.
    KeptBoxes(const Box<T>* boxes, int64_t count, T margin) : boxes_(boxes), margin_(margin) {
        for (int64_t i = 0; i < count; ++i)
            if (boxes[i].has_area()) grids_[std::ilogb(boxes[i].radius)].expect(boxes[i]);
        for (auto& entry : grids_) entry.second.open();
    }

    void keep(int64_t index) {
        if (boxes_[index].has_area()) grids_.at(std::ilogb(boxes_[index].radius)).add(boxes_[index], index);
    }

    // Whether the question is answered with yes for any box kept, of those from an index on, whose circle meets the
    // box's own.
    template <class Question>
    bool any_near(const Box<T>& box, int64_t first, Question question) const {
        if (!box.has_area()) return false;
        for (const auto& entry : grids_)
            if (entry.second.any_near(box, first, margin_, question)) return true;
        return false;
    }

  private:
    struct Place {
        T x, y, radius;
        int64_t index;
    };

    class Grid {
      public:
        void expect(const Box<T>& box) {
            low_x_ = count_ ? std::min(low_x_, box.x) : box.x, high_x_ = count_ ? std::max(high_x_, box.x) : box.x;
            low_y_ = count_ ? std::min(low_y_, box.y) : box.y, high_y_ = count_ ? std::max(high_y_, box.y) : box.y;
            reach_ = std::max(reach_, box.radius);
            ++count_;
        }

        // At most about as many cells as boxes.
        void open() {
            const T width = std::max(high_x_ - low_x_, high_y_ - low_y_);
            cell_ = std::max(2 * reach_, width / std::sqrt(static_cast<T>(count_)));
            columns_ = column(high_x_, low_x_, int64_t{1} << 30) + 1;
            rows_ = column(high_y_, low_y_, int64_t{1} << 30) + 1;
            cells_.resize(columns_ * rows_);
        }

        void add(const Box<T>& box, int64_t index) {
            cells_[column(box.y, low_y_, rows_) * columns_ + column(box.x, low_x_, columns_)].push_back(
                {box.x, box.y, box.radius, index});
        }

        template <class Question>
        bool any_near(const Box<T>& box, int64_t first, T margin, Question question) const {
            const T range = box.radius + reach_ + margin;
            const int64_t begin_x = column(box.x - range, low_x_, columns_),
                          end_x = column(box.x + range, low_x_, columns_);
            const int64_t begin_y = column(box.y - range, low_y_, rows_), end_y = column(box.y + range, low_y_, rows_);
            for (int64_t y = begin_y; y <= end_y; ++y)
                for (int64_t x = begin_x; x <= end_x; ++x)
                    if (any_in_cell(cells_[y * columns_ + x], box, first, margin, question)) return true;
            return false;
        }

      private:
        // Of cells that many; what lies outside belongs to the outermost.
        int64_t column(T value, T low, int64_t cells) const {
            const T place = (value - low) / cell_;
            return place > 0 ? static_cast<int64_t>(std::min(place, static_cast<T>(cells - 1))) : 0;
        }

        // The last one kept comes first; indices fall from there.
        template <class Question>
        static bool any_in_cell(const std::vector<Place>& cell, const Box<T>& box, int64_t first, T margin,
                                Question question) {
            for (auto place = cell.rbegin(); place != cell.rend() && place->index >= first; ++place) {
                const T east = place->x - box.x, north = place->y - box.y;
                const T reach = place->radius + box.radius + margin;
                if (east * east + north * north <= reach * reach && question(place->index)) return true;
            }
            return false;
        }

        T low_x_ = 0, high_x_ = 0, low_y_ = 0, high_y_ = 0, reach_ = 0, cell_ = 1;
        int64_t count_ = 0, columns_ = 1, rows_ = 1;
        std::vector<std::vector<Place>> cells_;
    };

    const Box<T>* boxes_;
    T margin_;
    std::map<int, Grid> grids_;
};

}  // namespace cakdp
