// A warp a region; the points pass through shared memory, a tile at a time, and votes keep their order.
#include "neighbors.h"

#include "launch.h"
#include "regions.h"

namespace cakdp {
namespace {

constexpr int kWarp = 32, kWarps = kThreads / kWarp;
constexpr unsigned kAll = 0xffffffffu;
constexpr int64_t kWarpsWanted = 8192, kPointsPerChunk = 4096, kMostChunks = 1024;

struct Lists {
    const int64_t *before, *start, *length;
    int64_t* index;
};

// Counts where lists.index is null, else writes the lists.
template <typename T, typename Region>
__global__ void scan_points(const T* points, Regions<T> regions, Stacks stacks, int64_t chunk_size, int64_t* counts,
                            Lists lists) {
    __shared__ T x[kThreads], y[kThreads], z[kThreads];
    const int lane = threadIdx.x % kWarp;
    const int64_t first = int64_t{blockIdx.x} * kWarps, region = first + threadIdx.x / kWarp;
    const bool is_region = region < stacks.num_queries;
    const int64_t mine = is_region ? region : first, slot = mine * gridDim.y + blockIdx.y;
    const Region shape(regions.numbers + Region::kNumbers * mine, regions.radius_squared);
    const Rows own = points_of_frame(stacks, mine);
    const int64_t last = smaller(first + kWarps, stacks.num_queries) - 1;
    const int64_t chunk_begin = blockIdx.y * chunk_size;
    const int64_t begin = larger(points_of_frame(stacks, first).begin, chunk_begin);
    const int64_t end = smaller(points_of_frame(stacks, last).end, chunk_begin + chunk_size);
    const int64_t limit = lists.index ? lists.length[mine] : stacks.num_points;
    int64_t found = lists.index ? lists.before[slot] : 0;
    for (int64_t tile = begin; tile < end; tile += kThreads) {
        const int64_t loaded = tile + threadIdx.x;
        __syncthreads();
        if (loaded < end) {
            x[threadIdx.x] = points[3 * loaded];
            y[threadIdx.x] = points[3 * loaded + 1];
            z[threadIdx.x] = points[3 * loaded + 2];
        }
        __syncthreads();
        if (!is_region || found >= limit) continue;
        for (int i = lane; i < kThreads; i += kWarp) {
            const int64_t row = tile + i;
            const bool held = row >= own.begin && row < smaller(own.end, end) && shape.holds(x[i], y[i], z[i]);
            const unsigned votes = __ballot_sync(kAll, held);
            const int64_t place = found + __popc(votes & ((1u << lane) - 1));
            if (lists.index && held && place < limit) lists.index[lists.start[mine] + place] = row;
            found += __popc(votes);
        }
    }
    if (!lists.index && is_region && lane == 0) counts[slot] = found;
}

template <typename T>
void scan(const T* points, const Regions<T>& regions, const Stacks& stacks, int64_t chunks, int64_t* counts,
          const Lists& lists, cudaStream_t stream) {
    const auto kernel = regions.is_ball ? scan_points<T, BallRegion<T>> : scan_points<T, BoxRegion<T>>;
    const dim3 blocks(static_cast<unsigned>((stacks.num_queries + kWarps - 1) / kWarps), static_cast<unsigned>(chunks));
    const int64_t chunk_size = (stacks.num_points + chunks - 1) / chunks;
    launch(kernel, blocks, dim3(kThreads), stream, points, regions, stacks, chunk_size, counts, lists);
}

}  // namespace

int64_t neighbor_chunks(int64_t num_regions, int64_t num_points) {
    const int64_t wanted = kWarpsWanted / larger<int64_t>(1, num_regions);
    const int64_t sensible = smaller((num_points + kPointsPerChunk - 1) / kPointsPerChunk, kMostChunks);
    return larger<int64_t>(1, smaller(wanted, sensible));
}

template <typename T>
void count_neighbors_cuda(const T* points, const Regions<T>& regions, const Stacks& stacks, int64_t chunks,
                          int64_t* counts, cudaStream_t stream) {
    scan(points, regions, stacks, chunks, counts, Lists{}, stream);
}

template <typename T>
void list_neighbors_cuda(const T* points, const Regions<T>& regions, const Stacks& stacks, int64_t chunks,
                         const int64_t* before, const int64_t* start, const int64_t* length, int64_t* index,
                         cudaStream_t stream) {
    scan(points, regions, stacks, chunks, nullptr, Lists{before, start, length, index}, stream);
}

#define CAKDP_INSTANTIATE(T)                                                                                         \
    template void count_neighbors_cuda(const T*, const Regions<T>&, const Stacks&, int64_t, int64_t*, cudaStream_t); \
    template void list_neighbors_cuda(const T*, const Regions<T>&, const Stacks&, int64_t, const int64_t*,           \
                                      const int64_t*, const int64_t*, int64_t*, cudaStream_t);
CAKDP_INSTANTIATE(float)
CAKDP_INSTANTIATE(double)
#undef CAKDP_INSTANTIATE

}  // namespace cakdp
