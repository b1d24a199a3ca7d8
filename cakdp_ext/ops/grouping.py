"""Features of neighbouring points, side by side."""

from __future__ import annotations

from torch import Tensor

from cakdp_ext.ops import native
from cakdp_ext.ops.checks import as_float, as_index, as_mask, check_same_device
from cakdp_ext.ops.reference import grouping as reference


def group_points(features: Tensor, index: Tensor, empty: Tensor | None = None) -> Tensor:
    """Gather the features of the points in each group.

    Differentiable in the features, twice where asked for. On CUDA the gradient adds up in no fixed order.

    Args:
        features: ``(N, C)``; half precision becomes float32.
        index: ``(M, S)`` int32 or int64, rows of ``features``. A CPU refuses others; CUDA, so as not to wait for the
            values, gives NaN for them.
        empty: ``(M,)`` bool, groups without points: their output is 0, whatever their index says.

    Returns:
        ``(M, C, S)``.

    Raises:
        ValueError: for another shape or dtype, tensors of several devices, or on a CPU an index that is no row.
    """
    features, index = as_float(features, "features", (None, None)), as_index(index, "index", (None, None))
    check_same_device(features, index, ("features", "index"))
    if empty is not None:
        empty = as_mask(empty, "empty", (len(index),))
        check_same_device(features, empty, ("features", "empty"))
    run = native.implementation("group_points", features.device) or reference.group_points
    return run(features, index, empty)
