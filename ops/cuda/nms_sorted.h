// Greedy non-maximum suppression of boxes that come best first within each group.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace cakdp {

struct NmsRule {
    double iou_threshold;
    bool axis_aligned, compat;
    int64_t pre_max, post_max;  // boxes of a group that are looked at, and that may stay
};

// Bytes that nms_sorted_cuda works in: about 200 a box in single precision, 275 in double, 40 more with groups.
template <typename T>
int64_t nms_workspace_bytes(int64_t count, bool has_groups);

// boxes (count, 7), groups (count,) in runs of equal numbers or null for a single one -> stays (count,).
// The workspace is aligned to 16 bytes. Nothing waits for the device.
template <typename T>
void nms_sorted_cuda(const T* boxes, const int64_t* groups, int64_t count, const NmsRule& rule, void* workspace,
                     bool* stays, cudaStream_t stream);

}  // namespace cakdp
