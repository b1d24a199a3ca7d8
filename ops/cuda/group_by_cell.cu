// A block a box: of a tile of points, those of one cell find each other, and their last one keeps the cell's count.
#include "group_by_cell.h"

#include "launch.h"

namespace cakdp {
namespace {

constexpr int kFew = 64;  // threads a block where boxes hold no more points than that on average

template <typename T>
__global__ void rank_in_cells(BoxLists<T> lists, CellGrid grid, int64_t* count, int64_t* cell, int64_t* rank) {
    __shared__ int64_t cells[kThreads];
    const int64_t item = blockIdx.x;
    const Box<T> box = make_box(lists.boxes + kBoxNumbers * item);
    const int64_t begin = clamped<int64_t>(lists.start[item], 0, lists.total);
    const int64_t end = begin + clamped<int64_t>(lists.length[item], 0, lists.total - begin);
    int64_t* counts = count + item * grid.total();
    for (int64_t tile = begin; tile < end; tile += blockDim.x) {
        const int self = threadIdx.x, size = static_cast<int>(smaller<int64_t>(blockDim.x, end - tile));
        const int64_t point = self < size ? lists.index[tile + self] : -1;
        const bool exists = point >= 0 && point < lists.num_points;
        const T* xyz = lists.points + 3 * point;
        const int64_t mine = exists ? cell_of(box, grid, xyz[0], xyz[1], xyz[2]) : -1;
        cells[self] = mine;
        __syncthreads();
        int earlier = 0, later = 0;
        for (int other = 0; other < size; ++other) {
            const bool same = cells[other] == mine;
            earlier += same && other < self;
            later += same && other > self;
        }
        const int64_t ranked = exists ? counts[mine] + earlier : 0;
        __syncthreads();
        if (!exists) continue;
        cell[tile + self] = item * grid.total() + mine;
        rank[tile + self] = ranked;
        if (later == 0) counts[mine] = ranked + 1;
    }
}

__global__ void place_members(const int64_t* index, const int64_t* cell, const int64_t* rank, const int64_t* first,
                              int64_t total, int64_t* members) {
    const int64_t k = thread_index();
    if (k >= total || cell[k] < 0) return;
    const int64_t place = first[cell[k]] + rank[k];
    if (place < total) members[place] = index[k];
}

}  // namespace

template <typename T>
void rank_in_cells_cuda(const BoxLists<T>& lists, const CellGrid& grid, int64_t* count, int64_t* cell, int64_t* rank,
                        cudaStream_t stream) {
    const dim3 blocks(static_cast<unsigned>(lists.num_boxes));
    const int threads = lists.total > kFew * lists.num_boxes ? kThreads : kFew;
    launch(rank_in_cells<T>, blocks, dim3(threads), stream, lists, grid, count, cell, rank);
}

void place_members_cuda(const int64_t* index, const int64_t* cell, const int64_t* rank, const int64_t* first,
                        int64_t total, int64_t* members, cudaStream_t stream) {
    launch(place_members, blocks_for(total), dim3(kThreads), stream, index, cell, rank, first, total, members);
}

template void rank_in_cells_cuda(const BoxLists<float>&, const CellGrid&, int64_t*, int64_t*, int64_t*, cudaStream_t);
template void rank_in_cells_cuda(const BoxLists<double>&, const CellGrid&, int64_t*, int64_t*, int64_t*, cudaStream_t);

}  // namespace cakdp
