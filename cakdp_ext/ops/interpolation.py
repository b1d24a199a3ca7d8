"""Features of a point from those of its nearest neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from cakdp_ext.ops import native
from cakdp_ext.ops.checks import as_counts, as_float, as_index, check_alike, check_same_device, check_same_frames
from cakdp_ext.ops.reference import interpolation as reference


@torch.no_grad()
def three_nn(unknown: Tensor, unknown_counts: Tensor, known: Tensor, known_counts: Tensor) -> tuple[Tensor, Tensor]:
    """Find the three known points of its frame that are nearest to each unknown one.

    No gradient flows. Where a frame has fewer than three known points, not counting those with a NaN or an infinity,
    the slots left over have an infinite distance, so a weight of 0 where weights are inverse distances, and repeat the
    nearest point; 0 stands where there is none. On a GPU the values of the counts are not read back: known rows outside
    the frames they describe are no neighbours, and unknown ones find none.

    Args:
        unknown: ``(N, 3)`` metres, all points of the first frame, then all of the second, ...
        unknown_counts: ``(B,)`` int32 or int64, unknown points in each frame.
        known: ``(M, 3)`` metres, likewise; dtype of ``unknown``.
        known_counts: ``(B,)`` int32 or int64, known points in each frame.

    Returns:
        distances ``(N, 3)`` in metres, not squared, nearest first; and index ``(N, 3)`` int64 rows of ``known``,
        equally near ones by ascending index. ``(0, 3)`` for no unknown points.

    Raises:
        ValueError: for another shape or tensors that differ in device or dtype; on a CPU also for counts that are not
            those of the rows.

    Source:
        PointNet++ (Qi et al., NeurIPS 2017), section 3.4, Eq. 2.
    """
    unknown, known = as_float(unknown, "unknown", (None, 3)), as_float(known, "known", (None, 3))
    check_alike(unknown, known, ("unknown", "known"))
    unknown_counts = as_counts(unknown_counts, "unknown_counts", unknown, "unknown")
    known_counts = as_counts(known_counts, "known_counts", known, "known")
    check_same_frames(unknown_counts, known_counts, ("unknown_counts", "known_counts"))
    run = native.implementation("three_nn", unknown.device) or reference.three_nn
    return run(unknown, unknown_counts, known, known_counts)


def three_interpolate(features: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Add up the weighted features of three points for each row.

    Differentiable in the features and the weights. On CUDA the gradient adds up in no fixed order.

    Args:
        features: ``(M, C)``; half precision becomes float32.
        index: ``(N, 3)`` int32 or int64, rows of ``features``. A CPU refuses others; CUDA, so as not to wait for the
            values, gives NaN for them.
        weights: ``(N, 3)``; taken as they are, they need not add up to 1.

    Returns:
        ``(N, C)``.

    Raises:
        ValueError: for another shape, tensors that differ in device or dtype, or on a CPU an index that is no row.

    Source:
        PointNet++ (Qi et al., NeurIPS 2017), section 3.4, Eq. 2.
    """
    features, index = as_float(features, "features", (None, None)), as_index(index, "index", (None, 3))
    weights = as_float(weights, "weights", (len(index), 3))
    check_same_device(features, index, ("features", "index"))
    check_alike(features, weights, ("features", "weights"))
    run = native.implementation("three_interpolate", features.device) or reference.three_interpolate
    return run(features, index, weights)
