// What non-maximum suppression keeps on the device between its kernels. Only .cu files include this.
#pragma once

#include <cstdint>

#include "box.h"

namespace cakdp {

constexpr int kChunk = 1024;               // boxes of a group that are settled together, a thread of a block each
constexpr int kWordsPerRow = kChunk / 32;  // of the mask: a bit for each box of the chunk
constexpr int64_t kAlignment = 16;

// Boxes of a group that are settled together.
struct Chunk {
    int64_t first;  // row of its first box
    int64_t size;

    // Where the mask holds a word of one of its boxes: word by word, boxes together.
    __device__ int64_t mask_index(int word, int box) const { return first * kWordsPerRow + word * size + box; }
};

struct NmsCounts {
    int groups, chunks;
};

template <typename T>
struct NmsWorkspace {
    NmsCounts* counts;
    int64_t *starts, *sizes, *num_kept;  // of each group: its first row, rows looked at, boxes kept so far
    Chunk* chunks;                       // of all groups, in any order
    Box<T>*boxes, *kept;                 // of each row; the kept ones of a group together, from its first row on
    unsigned* mask;                      // which earlier boxes of its chunk suppress a box
    bool* removed;                       // of each row: whether a box kept in a chunk before suppresses it
    int64_t bytes = 0;

    // Cuts a piece of memory, or only counts its bytes if there is none.
    NmsWorkspace(void* memory, int64_t count, bool has_groups) {
        const int64_t most_groups = has_groups ? count : 1;
        take(memory, counts, 1);
        take(memory, starts, most_groups);
        take(memory, sizes, most_groups);
        take(memory, num_kept, most_groups);
        take(memory, chunks, has_groups ? count : (count + kChunk - 1) / kChunk);
        take(memory, boxes, count);
        take(memory, kept, count);
        take(memory, mask, count * kWordsPerRow);
        take(memory, removed, count);
    }

    // What is left of a group from a chunk on, up to a chunk of it.
    __device__ Chunk chunk_of(int64_t group, int64_t number) const {
        const int64_t before = number * kChunk;
        return {starts[group] + before, clamped<int64_t>(sizes[group] - before, 0, kChunk)};
    }

  private:
    template <typename Item>
    void take(void* memory, Item*& items, int64_t count) {
        items = memory == nullptr ? nullptr : reinterpret_cast<Item*>(static_cast<char*>(memory) + bytes);
        bytes += (count * static_cast<int64_t>(sizeof(Item)) + kAlignment - 1) / kAlignment * kAlignment;
    }
};

}  // namespace cakdp
