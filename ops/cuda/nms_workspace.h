// What non-maximum suppression keeps on the device between its kernels. Only .cu files include this.
#pragma once

#include <cstdint>

#include "box.h"

namespace cakdp {

constexpr int kChunk = 1024;                     // boxes of a group that are settled at once, a thread of a block each
constexpr int kWordsPerRow = kChunk / 32;        // bits of a row of the mask: all boxes of its chunk
constexpr int64_t kAlignment = 16;

template <typename T>
struct NmsWorkspace {
    int* num_groups;
    int64_t *starts, *sizes, *num_kept;  // of each group: its first row, rows looked at, boxes kept so far
    Box<T>*boxes, *kept;                 // of each row; the kept ones of a group together, from its first row on
    unsigned* mask;                      // which earlier boxes of its chunk suppress a row: word by word, rows together
    bool* removed;                       // rows that boxes kept in chunks before suppress
    int64_t bytes = 0;

    // Cuts a piece of memory, or only counts its bytes if there is none.
    NmsWorkspace(void* memory, int64_t count, bool has_groups) {
        const int64_t most_groups = has_groups ? count : 1;
        take(memory, num_groups, 1);
        take(memory, starts, most_groups);
        take(memory, sizes, most_groups);
        take(memory, num_kept, most_groups);
        take(memory, boxes, count);
        take(memory, kept, count);
        take(memory, mask, count * kWordsPerRow);
        take(memory, removed, count);
    }

  private:
    template <typename Item>
    void take(void* memory, Item*& items, int64_t count) {
        items = memory == nullptr ? nullptr : reinterpret_cast<Item*>(static_cast<char*>(memory) + bytes);
        bytes += (count * static_cast<int64_t>(sizeof(Item)) + kAlignment - 1) / kAlignment * kAlignment;
    }
};

// A chunk of a group.
struct Chunk {
    int64_t first;  // row of its first box
    int size;

    // A row's place in the mask, word by word.
    __device__ int64_t mask_index(int word, int row) const { return first * kWordsPerRow + word * size + row; }
};

template <typename T>
__device__ Chunk chunk_of(const NmsWorkspace<T>& work, int64_t group, int64_t number) {
    const int64_t left = work.sizes[group] - number * kChunk;
    return {work.starts[group] + number * kChunk, static_cast<int>(clamped<int64_t>(left, 0, kChunk))};
}

}  // namespace cakdp
