// A thread a query: it walks the rows of its neighbourhood and searches each for the first voxel within reach. Queries
// that follow one another lie near each other, so that their rows are in the cache.
#include "voxel_query.h"

#include "box.h"
#include "launch.h"

namespace cakdp {
namespace {

constexpr int kQueriesPerBlock = 64;  // small, so that few queries, too, spread over every multiprocessor

template <typename Key>
__global__ void find_keys(const int64_t* coords, VoxelGrid grid, int64_t count, Key* keys) {
    const int64_t i = thread_index();
    if (i >= count) return;
    const int64_t* voxel = coords + 4 * i;
    const int64_t row = grid.holds(voxel) ? grid.row(voxel[0], voxel[1], voxel[2]) : grid.rows();
    keys[i] = static_cast<Key>(row * grid.width + (row < grid.rows() ? voxel[3] : 0));
}

template <typename Key, typename T>
__global__ void unpack(const Key* keys, const int64_t* index, const T* xyz, VoxelGrid grid, int64_t count, int64_t* x,
                       T* center) {
    const int64_t i = thread_index();
    if (i >= count) return;
    x[i] = static_cast<int64_t>(keys[i]) % grid.width;
    for (int axis = 0; axis < 3; ++axis) center[3 * i + axis] = xyz[3 * index[i] + axis];
}

// The first place from begin to end whose x is at least low.
__device__ inline int64_t lower_bound(const int64_t* x, int64_t begin, int64_t end, int64_t low) {
    while (begin < end) {
        const int64_t middle = begin + (end - begin) / 2;
        if (x[middle] < low)
            begin = middle + 1;
        else
            end = middle;
    }
    return begin;
}

template <typename T>
struct Search {
    T x, y, z, radius_squared;
    int64_t x_low, x_high, num_samples;
    int64_t* out;
    int64_t found = 0;

    // Takes what one row holds; false when there are enough.
    __device__ bool visit(const SortedVoxels<T>& voxels, int64_t begin, int64_t end) {
        int64_t last = -1;
        for (int64_t i = lower_bound(voxels.x, begin, end, x_low); i < end && voxels.x[i] <= x_high; ++i) {
            const bool repeated = voxels.x[i] == last;
            last = voxels.x[i];
            const T* center = voxels.center + 3 * i;
            const T east = x - center[0], north = y - center[1], up = z - center[2];
            if (repeated || !(east * east + north * north + up * up <= radius_squared)) continue;
            out[found++] = voxels.index[i];
            if (found == num_samples) return false;
        }
        return true;
    }
};

template <typename T>
__device__ void visit_rows(const int64_t* query, const SortedVoxels<T>& voxels, const VoxelGrid& grid,
                           Search<T>& search) {
    if (query[0] < 0 || query[0] >= grid.batch_size) return;
    const int64_t z_low = larger<int64_t>(0, query[1] - grid.range_z);
    const int64_t z_high = smaller(grid.depth - 1, query[1] + grid.range_z);
    const int64_t y_low = larger<int64_t>(0, query[2] - grid.range_y);
    const int64_t y_high = smaller(grid.height - 1, query[2] + grid.range_y);
    for (int64_t z = z_low; z <= z_high && y_low <= y_high; ++z) {
        const int64_t first = grid.row(query[0], z, y_low), last = grid.row(query[0], z, y_high);
        int64_t begin = voxels.row_begin[first];
        for (int64_t row = first; row <= last; ++row) {
            const int64_t end = voxels.row_begin[row + 1];
            if (begin < end && !search.visit(voxels, begin, end)) return;
            begin = end;
        }
    }
}

template <typename T>
__global__ void find_voxels(const int64_t* queries, const T* positions, SortedVoxels<T> voxels, VoxelGrid grid,
                            int64_t count, int64_t* index, bool* empty) {
    const int64_t i = thread_index();
    if (i >= count) return;
    const int64_t* query = queries + 4 * i;
    const T* xyz = positions + 3 * i;
    int64_t* out = index + i * grid.num_samples;
    Search<T> search{xyz[0],
                     xyz[1],
                     xyz[2],
                     static_cast<T>(grid.radius * grid.radius),
                     query[3] - grid.range_x,
                     query[3] + grid.range_x,
                     grid.num_samples,
                     out};
    visit_rows(query, voxels, grid, search);
    empty[i] = search.found == 0;
    const int64_t filler = search.found > 0 ? out[0] : 0;
    for (int64_t slot = search.found; slot < grid.num_samples; ++slot) out[slot] = filler;
}

}  // namespace

template <typename Key>
void voxel_keys_cuda(const int64_t* coords, const VoxelGrid& grid, int64_t count, Key* keys, cudaStream_t stream) {
    launch(find_keys<Key>, blocks_for(count), dim3(kThreads), stream, coords, grid, count, keys);
}

template <typename Key, typename T>
void unpack_voxels_cuda(const Key* keys, const int64_t* index, const T* xyz, const VoxelGrid& grid, int64_t count,
                        int64_t* x, T* center, cudaStream_t stream) {
    launch(unpack<Key, T>, blocks_for(count), dim3(kThreads), stream, keys, index, xyz, grid, count, x, center);
}

template <typename T>
void voxel_query_cuda(const int64_t* queries, const T* positions, const SortedVoxels<T>& voxels, const VoxelGrid& grid,
                      int64_t count, int64_t* index, bool* empty, cudaStream_t stream) {
    const dim3 blocks(static_cast<unsigned>((count + kQueriesPerBlock - 1) / kQueriesPerBlock));
    launch(find_voxels<T>, blocks, dim3(kQueriesPerBlock), stream, queries, positions, voxels, grid, count, index,
           empty);
}

template void voxel_keys_cuda(const int64_t*, const VoxelGrid&, int64_t, int32_t*, cudaStream_t);
template void voxel_keys_cuda(const int64_t*, const VoxelGrid&, int64_t, int64_t*, cudaStream_t);

#define CAKDP_INSTANTIATE(T)                                                                                        \
    template void unpack_voxels_cuda(const int32_t*, const int64_t*, const T*, const VoxelGrid&, int64_t, int64_t*, \
                                     T*, cudaStream_t);                                                             \
    template void unpack_voxels_cuda(const int64_t*, const int64_t*, const T*, const VoxelGrid&, int64_t, int64_t*, \
                                     T*, cudaStream_t);                                                             \
    template void voxel_query_cuda(const int64_t*, const T*, const SortedVoxels<T>&, const VoxelGrid&, int64_t,     \
                                   int64_t*, bool*, cudaStream_t);
CAKDP_INSTANTIATE(float)
CAKDP_INSTANTIATE(double)
#undef CAKDP_INSTANTIATE

}  // namespace cakdp
