"""Local graphs of the voxels that hold most points: PointDistiller."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cakdp_ext.config import ConfigError
from cakdp_ext.distillation.comparison import TEACHER_ADVICE
from cakdp_ext.distillation.local_graphs import GraphLayer, GraphSettings, build_graphs, check_count, points_in_cells
from cakdp_ext.distillation.methods import DistillMethod, DistillOutput, Lesson, register_method
from cakdp_ext.distillation.representatives import check_finite
from cakdp_ext.taps import ENCODED, SparseFeatures, Taps
from cakdp_ext.types import Role

VOXELS = "voxels"
"""In place of a scale's name: the features that the detector makes of the points of each voxel or pillar."""


@dataclass(frozen=True)
class PointDistillerConfig(GraphSettings):
    """Keys of PointDistiller, with those of :class:`GraphSettings`.

    Attributes:
        scale: whose features are compared: ``x_conv1`` to ``x_conv4`` or ``encoded`` of a 3D backbone, or ``voxels``
            where what stands for the points of a voxel is learned, as in pillars.
        graph_channels: features of a graph.
    """

    scale: str = ENCODED
    graph_channels: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("graph_channels", self.graph_channels)


@register_method("PointDistiller")
class PointDistiller(DistillMethod):
    """Pull the student's features of a voxel and its neighbours towards the teacher's, most where most points are.

    Of each frame the N voxels with most points are taken. Each is the middle of a graph of K voxels; a layer of the
    student's and one of the teacher's aggregate what the two detectors say of them, and the results are compared,
    weighted by a softmax over numbers of points. Both layers are trained with the student and thrown away with the
    teacher. Heads play no part: anchor and center heads may be mixed, and the teacher may have one stage.

    What the paper leaves open is decided so:

    * Features: by default those of the last scale of the 3D backbone, behind which there are no voxels. A cell of a
      coarser scale holds the points of all voxels that lie in it, its grid laid over that of the voxels.
    * Voxels meet by their coordinates; one that is not active in both detectors is not compared. Among voxels of as
      many points the first by z, y and x count.
    * Neighbours: the nearest by position, in cells of the scale, among the N of the same frame, so that both detectors
      have the same graphs; among equally near ones those with more points. Where a frame has fewer than K, the voxel
      itself fills up.
    * Weights: the numbers of points are divided by the frame's largest before temperature and softmax, since at a
      coarse scale they reach hundreds, of which a softmax leaves one. They sum to 1 over a frame.
    * Loss: the mean over channels of the squared difference, weighted, summed over a frame, averaged over frames; a
      frame without voxels counts 0.
    * The paper concatenates a voxel's features with a neighbour's. A layer on their difference instead spans the same
      functions.

    Source: Zhang et al., PointDistiller (CVPR 2023), section 3.2, Eq. 1 and 2.
    """

    Config = PointDistillerConfig
    config: PointDistillerConfig
    student_graphs: GraphLayer
    teacher_graphs: GraphLayer

    def __init__(self, config: PointDistillerConfig) -> None:
        super().__init__(config)
        self.taps = frozenset({Role.VOXELS} if config.scale == VOXELS else {Role.VOXELS, Role.SPARSE})

    def adapt(self, student: Taps, teacher: Taps) -> None:
        """Make both aggregations.

        Raises:
            ConfigError: where a detector has no such scale, the scales are not of the same cells, or points cannot be
                counted in them.
        """
        widths = [
            self._features(shown, name)[0].shape[1] for shown, name in ((student, "student"), (teacher, "teacher"))
        ]
        grids = [
            None if self.config.scale == VOXELS else _grid(shown.sparse[self.config.scale])
            for shown in (student, teacher)
        ]
        if grids[0] != grids[1]:
            raise ConfigError(
                f"PointDistiller compares voxels of the same cells; {self.config.scale} of the student has {grids[0]}, "
                f"that of the teacher {grids[1]}; choose another SCALE, or give both the same BACKBONE_3D"
            )
        self._num_points(student)
        self.student_graphs = GraphLayer(widths[0], self.config.graph_channels)
        self.teacher_graphs = GraphLayer(widths[1], self.config.graph_channels)

    def forward(self, lesson: Lesson) -> DistillOutput:
        """Compare student and teacher on one batch.

        Args:
            lesson: gradient flows to the student's features of the scale, and to both aggregations.

        Returns:
            The loss, connected to the student, and how many voxels of each frame were compared.

        Raises:
            ConfigError: where nothing of the student is learned before the scale.
            FloatingPointError: for features of the teacher that are not finite.
        """
        (ours, our_coords), (theirs, their_coords) = (
            self._features(shown, name) for shown, name in ((lesson.student, "student"), (lesson.teacher, "teacher"))
        )
        if torch.is_grad_enabled() and not ours.requires_grad:
            raise ConfigError(
                f"SCALE {self.config.scale} of PointDistiller: the student learns nothing up to there; choose {ENCODED}"
            )
        graphs = build_graphs(our_coords, their_coords, self._num_points(lesson.student), self.config)
        check_finite(theirs[graphs.teacher_rows], "the teacher's voxel features", TEACHER_ADVICE)
        student = self.student_graphs(ours[graphs.student_rows], graphs.neighbors).float()
        teacher = self.teacher_graphs(theirs[graphs.teacher_rows].detach(), graphs.neighbors).float()
        terms = (student - teacher).square().mean(dim=1)
        counts = torch.bincount(graphs.frame, minlength=lesson.batch.batch_size)
        return DistillOutput((graphs.weights * terms).sum() / len(counts), counts)

    def _features(self, shown: Taps, name: str) -> tuple[Tensor, Tensor]:
        """Give features ``(N, C)`` and coordinates ``(N, 4)`` of the scale."""
        if self.config.scale == VOXELS:
            return shown.voxels.features, shown.voxels.coords
        if self.config.scale not in shown.sparse:
            known = ", ".join([*shown.sparse, VOXELS])
            raise ConfigError(f"unknown SCALE {self.config.scale!r} of PointDistiller; the {name} has {known}")
        scale = shown.sparse[self.config.scale]
        return scale.features, scale.coords

    def _num_points(self, shown: Taps) -> Tensor:
        """Count the points ``(N,)`` in the cells of the scale."""
        if self.config.scale == VOXELS:
            return shown.voxels.num_points
        finest = min(shown.sparse.values(), key=lambda scale: scale.stride)
        if finest.stride != 1:
            raise ConfigError(
                f"PointDistiller counts points by the voxels of x_conv1, the student's finest scale has stride "
                f"{finest.stride}; let its backbone show one of stride 1, or choose SCALE {VOXELS}"
            )
        return points_in_cells(shown.voxels, shown.sparse[self.config.scale], finest)


def _grid(scale: SparseFeatures) -> str:
    return f"{' x '.join(map(str, scale.spatial_shape))} cells of stride {scale.stride}"
