"""Features of neighbouring points, side by side."""

from __future__ import annotations

from torch import Tensor

from cakdp_ext.ops.reference.stacked import check_rows


def group_points(features: Tensor, index: Tensor, empty: Tensor | None = None) -> Tensor:
    """Index the features; autograd follows.

    Args:
        features: ``(N, C)``.
        index: ``(M, S)`` int64.
        empty: ``(M,)`` bool, groups whose output is 0.

    Returns:
        ``(M, C, S)``.
    """
    if empty is None:
        check_rows(index, len(features))
        return features[index].transpose(1, 2).contiguous()
    some = (~empty).nonzero()[:, 0]
    grouped = features.new_zeros(len(index), features.shape[1], index.shape[1])
    return grouped.index_copy(0, some, group_points(features, index[some]))
