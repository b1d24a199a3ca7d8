// A warp a box: of 32 points at a time, those of one cell find each other, and their first one keeps the cell's count.
#include "group_by_cell.h"

#include "launch.h"

namespace cakdp {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffffu;

template <typename T>
__global__ void rank_in_cells(BoxLists<T> lists, CellGrid grid, int64_t* count, int64_t* cell, int64_t* rank) {
    const int64_t item = thread_index() / kWarp;
    const int lane = threadIdx.x % kWarp;
    if (item >= lists.num_boxes) return;
    const Box<T> box = make_box(lists.boxes + kBoxNumbers * item);
    const int64_t begin = clamped<int64_t>(lists.start[item], 0, lists.total);
    const int64_t end = begin + clamped<int64_t>(lists.length[item], 0, lists.total - begin);
    int64_t* counts = count + item * grid.total();
    for (int64_t k = begin + lane; k - lane < end; k += kWarp) {
        const int64_t point = k < end ? lists.index[k] : -1;
        const bool exists = point >= 0 && point < lists.num_points;
        const T* xyz = lists.points + 3 * point;
        const int64_t mine = exists ? cell_of(box, grid, xyz[0], xyz[1], xyz[2]) : -1;
        const unsigned alike = __match_any_sync(kAll, static_cast<long long>(mine));
        const int leader = __ffs(static_cast<int>(alike)) - 1;
        const int64_t before = exists && lane == leader ? counts[mine] : 0;
        const int64_t ranked = __shfl_sync(kAll, before, leader) + __popc(alike & ((1u << lane) - 1));
        if (exists && lane == leader) counts[mine] = before + __popc(alike);
        if (exists) cell[k] = item * grid.total() + mine;
        if (exists) rank[k] = ranked;
        __syncwarp();
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
    launch(rank_in_cells<T>, blocks_for(lists.num_boxes * kWarp), dim3(kThreads), stream, lists, grid, count, cell,
           rank);
}

void place_members_cuda(const int64_t* index, const int64_t* cell, const int64_t* rank, const int64_t* first,
                        int64_t total, int64_t* members, cudaStream_t stream) {
    launch(place_members, blocks_for(total), dim3(kThreads), stream, index, cell, rank, first, total, members);
}

template void rank_in_cells_cuda(const BoxLists<float>&, const CellGrid&, int64_t*, int64_t*, int64_t*, cudaStream_t);
template void rank_in_cells_cuda(const BoxLists<double>&, const CellGrid&, int64_t*, int64_t*, int64_t*, cudaStream_t);

}  // namespace cakdp
