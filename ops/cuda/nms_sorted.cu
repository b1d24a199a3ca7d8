// Boxes are settled in chunks, in order. One launch finds which boxes of a chunk suppress which later ones of it, for
// all chunks; then, for each chunk in turn, one launch compares its boxes with those kept so far, and a block for each
// group settles what is left. No box is compared with one known to be suppressed in an earlier chunk, and memory grows
// with the number of boxes, not with its square.
#include "nms_sorted.h"

#include "nms_workspace.h"
#include "suppression.h"
#include "warp_pairs.h"

namespace cakdp {
namespace {

constexpr int kTiles = kChunk / kWarp;    // of a chunk
constexpr int kMostWarps = 4096;          // at once; they go on with further work
constexpr int kComparingWarps = 2048;     // at once, of a chunk's boxes with those kept
constexpr int64_t kSettlingBlocks = 128;  // at once

// End of the run of equal numbers that begins at a place.
__device__ inline int64_t run_end(const int64_t* groups, int64_t begin, int64_t count) {
    int64_t inside = begin, outside = count;
    while (outside - inside > 1) {
        const int64_t middle = inside + (outside - inside) / 2;
        (groups[middle] == groups[begin] ? inside : outside) = middle;
    }
    return outside;
}

template <typename T>
__global__ void prepare(const T* boxes, const int64_t* groups, int64_t count, bool axis_aligned, int64_t pre_max,
                        NmsWorkspace<T> work, bool* stays) {
    const int64_t i = thread_index();
    if (i >= count) return;
    work.boxes[i] = make_box(boxes + i * kBoxNumbers, axis_aligned);
    work.removed[i] = stays[i] = false;
    if (i > 0 && (groups == nullptr || groups[i] == groups[i - 1])) return;
    const int64_t size = (groups == nullptr ? count : run_end(groups, i, count)) - i;
    const int group = atomicAdd(&work.counts->groups, 1);
    work.starts[group] = i;
    work.sizes[group] = smaller(size, pre_max);
    work.num_kept[group] = 0;
    const int num_chunks = static_cast<int>((work.sizes[group] + kChunk - 1) / kChunk);
    const int first = atomicAdd(&work.counts->chunks, num_chunks);
    for (int chunk = 0; chunk < num_chunks; ++chunk) work.chunks[first + chunk] = work.chunk_of(group, chunk);
}

// Loads boxes from a place on that have so many left; gives how many the warp took.
template <typename T>
__device__ int load_tile(Box<T>* tile, const Box<T>* boxes, int64_t left) {
    const int count = static_cast<int>(smaller<int64_t>(kWarp, left));
    __syncwarp();
    if (lane() < count) tile[lane()] = boxes[lane()];
    __syncwarp();
    return count;
}

// Calls found(row, column) for each pair, of those marked near, of which the column suppresses the row.
template <class Rule, typename T, class Found>
__device__ void for_suppressed(WarpPairs<T>& pairs, unsigned meeting, T iou_threshold, Found found) {
    const int count = pairs.enqueue(meeting);
    for (int i = lane(); i < count; i += kWarp) {
        const int row = pairs.row_of(pairs.queue[i]), column = pairs.column_of(pairs.queue[i]);
        if (suppresses<Rule>(pairs.columns[column], pairs.rows[row], iou_threshold)) found(row, column);
    }
    __syncwarp();
}

// A warp a word of the mask for each of 32 boxes.
template <class Rule, typename T>
__global__ void __launch_bounds__(kPairThreads) mark_within_chunks(NmsWorkspace<T> work, T iou_threshold) {
    __shared__ WarpPairs<T> tiles[kPairWarps];
    WarpPairs<T>& pairs = tiles[threadIdx.x / kWarp];
    const int64_t units = int64_t{work.counts->chunks} * kTiles * kTiles;
    for (int64_t unit = warp_index(); unit < units; unit += warp_count()) {
        const Chunk chunk = work.chunks[unit / (kTiles * kTiles)];
        const int tile = static_cast<int>(unit / kTiles % kTiles), word = static_cast<int>(unit % kTiles);
        if (tile * kWarp >= chunk.size || word > tile) continue;
        const Box<T>* boxes = work.boxes + chunk.first;
        const int rows = load_tile(pairs.rows, boxes + tile * kWarp, chunk.size - tile * kWarp);
        const int columns = load_tile(pairs.columns, boxes + word * kWarp, chunk.size - word * kWarp);
        unsigned meeting = pairs.meeting_rows(rows, columns, T(Rule::kReach));
        if (word == tile) meeting &= lane() + 1 < kWarp ? ~0u << (lane() + 1) : 0u;
        pairs.bits[lane()] = 0;
        for_suppressed<Rule>(pairs, meeting, iou_threshold,
                             [&](int row, int column) { atomicOr(&pairs.bits[row], 1u << column); });
        if (lane() < rows) work.mask[chunk.mask_index(word, tile * kWarp + lane())] = pairs.bits[lane()];
    }
}

// A warp compares 32 boxes of a chunk with a part of those kept before; the fewer the groups, the smaller the parts.
template <class Rule, typename T>
__global__ void __launch_bounds__(kPairThreads)
    remove_by_kept(NmsWorkspace<T> work, int64_t number, T iou_threshold, int64_t post_max) {
    __shared__ WarpPairs<T> tiles[kPairWarps];
    WarpPairs<T>& pairs = tiles[threadIdx.x / kWarp];
    const int64_t num_groups = work.counts->groups, parts = larger<int64_t>(1, kComparingWarps / kTiles / num_groups);
    for (int64_t unit = warp_index(); unit < num_groups * kTiles * parts; unit += warp_count()) {
        const int64_t group = unit / (kTiles * parts), part = unit / kTiles % parts, num_kept = work.num_kept[group];
        const int tile = static_cast<int>(unit % kTiles);
        const Chunk chunk = work.chunk_of(group, number);
        if (tile * kWarp >= chunk.size || num_kept >= post_max) continue;
        const Box<T>*boxes = work.boxes + chunk.first + tile * kWarp, *kept = work.kept + work.starts[group];
        const int rows = load_tile(pairs.rows, boxes, chunk.size - tile * kWarp);
        unsigned waiting = rows < kWarp ? (1u << rows) - 1 : ~0u;
        if (lane() == 0) pairs.bits[0] = 0;
        for (int64_t first = part * kWarp; first < num_kept && waiting != 0; first += parts * kWarp) {
            const int columns = load_tile(pairs.columns, kept + first, num_kept - first);
            const unsigned meeting = pairs.meeting_rows(rows, columns, T(Rule::kReach)) & waiting;
            for_suppressed<Rule>(pairs, meeting, iou_threshold,
                                 [&](int row, int) { atomicOr(&pairs.bits[0], 1u << row); });
            waiting &= ~pairs.bits[0];
        }
        if (lane() < rows && !(waiting >> lane() & 1)) work.removed[chunk.first + tile * kWarp + lane()] = true;
    }
}

// Of 32 boxes of which some are gone, those that stay: whoever has no undecided suppressor stays, whom it suppresses
// goes, and so on. A lane's suppressors are lanes before it, so that each round decides at least one.
__device__ inline unsigned settle_warp(unsigned suppressors, bool is_gone) {
    unsigned stay = 0, undecided = __ballot_sync(kWholeWarp, !is_gone);
    while (undecided != 0) {
        const unsigned found = __ballot_sync(kWholeWarp, (undecided >> lane() & 1) && (suppressors & undecided) == 0);
        stay |= found;
        undecided &= ~found;
        undecided &= ~__ballot_sync(kWholeWarp, (suppressors & found) != 0);
    }
    return stay;
}

// A block settles a chunk of its group: warp after warp, each telling the later ones what it keeps.
template <typename T>
__global__ void __launch_bounds__(kChunk)
    settle_chunk(NmsWorkspace<T> work, int64_t number, int64_t post_max, bool* stays) {
    __shared__ unsigned words[kTiles];
    const int row = static_cast<int>(threadIdx.x), warp = row / kWarp;
    for (int64_t group = blockIdx.x; group < work.counts->groups; group += gridDim.x) {
        const Chunk chunk = work.chunk_of(group, number);
        const int64_t kept_before = work.num_kept[group];
        if (chunk.size == 0 || kept_before >= post_max) continue;
        const int num_words = static_cast<int>((chunk.size + kWarp - 1) / kWarp);
        bool is_gone = row >= chunk.size || work.removed[chunk.first + row];
        unsigned ahead = row < chunk.size ? work.mask[chunk.mask_index(0, row)] : 0;
        for (int word = 0; word < num_words; ++word) {
            const unsigned suppressors = ahead;
            if (word < warp && row < chunk.size) ahead = work.mask[chunk.mask_index(word + 1, row)];
            if (word == warp) {
                const unsigned found = settle_warp(suppressors, is_gone);
                if (lane() == 0) words[word] = found;
            }
            __syncthreads();
            if (word < warp) is_gone = is_gone || (suppressors & words[word]) != 0;
        }
        int64_t place = kept_before, end = kept_before;
        for (int word = 0; word < num_words; ++word) {
            place += word < warp ? __popc(words[word]) : 0;
            end += __popc(words[word]);
        }
        if (warp < num_words && (words[warp] >> lane() & 1)) {
            place += __popc(words[warp] & ((1u << lane()) - 1));
            if (place < post_max) {
                stays[chunk.first + row] = true;
                work.kept[work.starts[group] + place] = work.boxes[chunk.first + row];
            }
        }
        if (row == 0) work.num_kept[group] = smaller(end, post_max);
        __syncthreads();
    }
}

template <class Rule, typename T>
void run(const T* boxes, const int64_t* groups, int64_t count, const NmsRule& rule, const NmsWorkspace<T>& work,
         bool* stays, cudaStream_t stream) {
    const T threshold = static_cast<T>(rule.iou_threshold);
    const int64_t num_chunks = (smaller(count, rule.pre_max) + kChunk - 1) / kChunk;
    const int64_t most_chunks = groups == nullptr ? num_chunks : count;
    const int64_t marking_warps = smaller<int64_t>(most_chunks * kTiles * kTiles, kMostWarps);
    const dim3 marking = blocks_of_warps(marking_warps, kPairThreads);
    const dim3 comparing = blocks_of_warps(kComparingWarps, kPairThreads);
    const dim3 settling(static_cast<unsigned>(groups == nullptr ? 1 : smaller(count, kSettlingBlocks)));
    cudaMemsetAsync(work.counts, 0, sizeof(NmsCounts), stream);
    launch(prepare<T>, blocks_for(count), dim3(kThreads), stream, boxes, groups, count, rule.axis_aligned, rule.pre_max,
           work, stays);
    launch(mark_within_chunks<Rule, T>, marking, dim3(kPairThreads), stream, work, threshold);
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
        if (chunk > 0)
            launch(remove_by_kept<Rule, T>, comparing, dim3(kPairThreads), stream, work, chunk, threshold,
                   rule.post_max);
        launch(settle_chunk<T>, settling, dim3(kChunk), stream, work, chunk, rule.post_max, stays);
    }
}

}  // namespace

template <typename T>
int64_t nms_workspace_bytes(int64_t count, bool has_groups) {
    return NmsWorkspace<T>(nullptr, count, has_groups).bytes;
}

template <typename T>
void nms_sorted_cuda(const T* boxes, const int64_t* groups, int64_t count, const NmsRule& rule, void* workspace,
                     bool* stays, cudaStream_t stream) {
    const NmsWorkspace<T> work(workspace, count, groups != nullptr);
    if (rule.axis_aligned)
        run<Upright>(boxes, groups, count, rule, work, stays, stream);
    else if (rule.compat)
        run<WithMargin>(boxes, groups, count, rule, work, stays, stream);
    else
        run<Exact>(boxes, groups, count, rule, work, stays, stream);
}

template int64_t nms_workspace_bytes<float>(int64_t, bool);
template int64_t nms_workspace_bytes<double>(int64_t, bool);
template void nms_sorted_cuda(const float*, const int64_t*, int64_t, const NmsRule&, void*, bool*, cudaStream_t);
template void nms_sorted_cuda(const double*, const int64_t*, int64_t, const NmsRule&, void*, bool*, cudaStream_t);

}  // namespace cakdp
