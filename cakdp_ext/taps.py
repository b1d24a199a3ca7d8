"""What does a detector show of a batch while it computes? Features and predictions by role, the same of both engines.

Those of a student in training carry its gradient, those of a teacher none. Nothing here is a copy: whoever wants to
change a tensor clones it first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cakdp_ext.types import DensePredictions, PredictionSites, Role

ENCODED = "encoded"
"""Name of the sparse features that the bird's-eye view is made of."""


@dataclass(frozen=True)
class VoxelFeatures:
    """The voxels (or pillars) that a detector reads.

    Attributes:
        features: ``(V, F)`` that stand for the points of each.
        coords: ``(V, 4)`` int64, ``(batch, z, y, x)``.
        num_points: ``(V,)`` int64, how many points each holds; points beyond the data set's limit a voxel do not count.
    """

    features: Tensor
    coords: Tensor
    num_points: Tensor


@dataclass(frozen=True)
class SparseFeatures:
    """One scale of the 3D backbone.

    Attributes:
        features: ``(N, C)`` of the active voxels.
        coords: ``(N, 4)`` int64, ``(batch, z, y, x)`` in the cells of this scale.
        spatial_shape: number of cells along z, y and x.
        stride: in x and y, with respect to the voxel grid.
    """

    features: Tensor
    coords: Tensor
    spatial_shape: tuple[int, int, int]
    stride: int

    @classmethod
    def of(cls, tensor: Any, stride: int) -> SparseFeatures:
        """Read a ``SparseConvTensor``, whose features may have been reduced to half precision.

        Args:
            tensor: of spconv.
            stride: in x and y, with respect to the voxel grid.
        """
        depth, rows, columns = map(int, tensor.spatial_shape)
        return cls(tensor.features, tensor.indices.long(), (depth, rows, columns), int(stride))


@dataclass(frozen=True)
class BevFeatures:
    """The two maps of the bird's-eye view.

    Attributes:
        map: ``(B, C, H, W)`` that the 2D backbone reads (OpenPCDet's ``spatial_features``).
        features: ``(B, C', H', W')`` of the 2D backbone, which the dense head reads (``spatial_features_2d``).
    """

    map: Tensor
    features: Tensor


@dataclass(frozen=True)
class BoxCodes:
    """What a dense head regresses at its A sites, raw.

    Attributes:
        values: ``(B, A, P, D)`` float32 of the P parts of the head. For an anchor head P = 1, and D = 7 residuals of
            the anchors (x, y, z, sizes, heading); for a center head D = 8: x and y in the cell, z, logarithms of the
            sizes, cosine and sine of the heading.
        parts: the classes whose boxes each part gives.
        dir_logits: ``(B, A, bins)`` float32 of an anchor head's direction classifier; None where there is none.
    """

    values: Tensor
    parts: tuple[tuple[str, ...], ...]
    dir_logits: Tensor | None = None


@dataclass(frozen=True)
class Taps:
    """What one detector shows of one batch.

    Attributes:
        sites: where its predictions sit.
        by_role: what was asked for.
    """

    sites: PredictionSites
    by_role: Mapping[Role, Any]

    @property
    def voxels(self) -> VoxelFeatures:
        """What the detector reads."""
        found: VoxelFeatures = self._at(Role.VOXELS)
        return found

    @property
    def sparse(self) -> Mapping[str, SparseFeatures]:
        """Scales of the 3D backbone: ``x_conv1`` to ``x_conv4`` where it has them, and ``encoded``."""
        found: Mapping[str, SparseFeatures] = self._at(Role.SPARSE)
        return found

    @property
    def bev(self) -> BevFeatures:
        """The maps of the bird's-eye view."""
        found: BevFeatures = self._at(Role.BEV)
        return found

    @property
    def dense(self) -> DensePredictions:
        """What the dense head predicts."""
        found: DensePredictions = self._at(Role.DENSE)
        return found

    @property
    def boxes(self) -> BoxCodes:
        """What the dense head regresses, before boxes are made of it."""
        found: BoxCodes = self._at(Role.BOXES)
        return found

    def _at(self, role: Role) -> Any:
        if role not in self.by_role:
            raise LookupError(
                f"{role} was not asked for; name it in the method's taps. There are: "
                f"{', '.join(map(str, self.by_role)) or 'none'}"
            )
        return self.by_role[role]
