"""What is centred where? Dense heads that find objects as peaks of heat maps of the bird's-eye view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cakdp_ext import refinement
from cakdp_ext.center_maps import BRANCHES, CenterCells, ClassesOfParts, codes_of, join_codes
from cakdp_ext.detectors.center_head_config import CenterHeadConfig, CenterHeadIoUConfig
from cakdp_ext.detectors.center_losses import heatmap_loss, regression_loss
from cakdp_ext.detectors.center_targets import CenterTargets, HeadGrid, assign_centers
from cakdp_ext.detectors.post_processing import CommonPostProcessing, detect_centers
from cakdp_ext.detectors.registry import DENSE_HEADS
from cakdp_ext.refinement import IoURefinement, refine_scores
from cakdp_ext.taps import BoxCodes
from cakdp_ext.types import Batch, DensePredictions, Detections, LidarGeometry, PredictionSites

PEAK_PROBABILITY = 0.1
"""What fresh heat maps say of every cell, as CenterNet's published code has it."""


@dataclass(frozen=True)
class PartMaps:
    """Raw maps of one part of a center head, float32, with gradient in training.

    Attributes:
        hm: ``(B, C, H, W)`` class logits of the part's classes.
        center: ``(B, 2, H, W)`` x and y from the cell's lower corner, in cells.
        center_z: ``(B, 1, H, W)`` metres.
        dim: ``(B, 3, H, W)`` logarithms of the sizes in metres.
        rot: ``(B, 2, H, W)`` cosine and sine of the heading.
        iou: ``(B, C, H, W)``, or None without an IoU branch.
    """

    hm: Tensor
    center: Tensor
    center_z: Tensor
    dim: Tensor
    rot: Tensor
    iou: Tensor | None = None

    @property
    def codes(self) -> Tensor:
        """The regressed values ``(B, 8, H, W)``."""
        return codes_of(vars(self))


CenterOutput = tuple[PartMaps, ...]
"""What a center head makes of a map, part by part."""


@DENSE_HEADS.register("CenterHead")
class CenterHead(nn.Module):
    """Parts, each with heat maps for some of the classes and one box a cell, on top of a shared convolution.

    Args:
        config: the section's keys.
        in_channels: channels of the map.
        class_names: classes by label.
        geometry: the range that the map covers.

    Source: CenterPoint (Yin et al., CVPR 2021), section 4, first stage, with OpenPCDet's tensor names.
    """

    Config: type[CenterHeadConfig] = CenterHeadConfig
    PostProcessing = CommonPostProcessing
    has_iou_branch = False
    centers: Tensor
    code_weights: Tensor
    class_order: Tensor
    part_of_class: Tensor

    def __init__(
        self, config: CenterHeadConfig, in_channels: int, class_names: Sequence[str], geometry: LidarGeometry
    ) -> None:
        super().__init__()
        self.config = config
        self.class_names = tuple(class_names)
        self.num_classes = len(class_names)
        self.labels_of_parts = config.labels_of_parts(class_names)
        self.stride = config.target_assigner_config.feature_map_stride
        self.grid = HeadGrid(geometry, self.stride)
        classes = ClassesOfParts.of([torch.tensor(part) for part in self.labels_of_parts])
        for name, constant in (
            ("centers", geometry.cell_centers(self.stride)),
            ("code_weights", torch.tensor(config.loss_config.loss_weights.code_weights)),
            ("class_order", classes.order),
            ("part_of_class", classes.parts),
        ):
            self.register_buffer(name, constant, persistent=False)
        self.shared_conv = self._conv_block(in_channels)
        self.heads_list = nn.ModuleList(nn.ModuleDict(self._branches(len(part))) for part in self.labels_of_parts)

    def _branches(self, num_classes: int) -> dict[str, nn.Module]:
        """Make the branches of a part, by the names of its maps."""
        config = self.config
        branches = {
            name: self._branch(channels, config.separate_head_cfg.num_conv(name)) for name, channels in BRANCHES.items()
        }
        for branch in branches.values():
            branch.apply(_start_regressing)
        return {**branches, "hm": self._scores(num_classes, config.num_hm_conv, PEAK_PROBABILITY)}

    def _scores(self, channels: int, num_conv: int, prior: float) -> nn.Module:
        """Make a branch of raw scores whose sigmoids start near ``prior``."""
        branch = self._branch(channels, num_conv)
        refinement.start_from_prior(branch[-1], prior)  # type: ignore[arg-type]
        return branch

    def _branch(self, channels: int, num_conv: int) -> nn.Sequential:
        width = self.config.shared_conv_channel
        blocks = [self._conv_block(width) for _ in range(num_conv - 1)]
        return nn.Sequential(*blocks, nn.Conv2d(width, channels, 3, padding=1))

    def _conv_block(self, in_channels: int) -> nn.Sequential:
        config = self.config
        width = config.shared_conv_channel
        conv = nn.Conv2d(in_channels, width, 3, padding=1, bias=config.use_bias_before_norm)
        return nn.Sequential(conv, nn.BatchNorm2d(width, eps=config.bn_eps, momentum=config.bn_mom), nn.ReLU())

    @property
    def sites(self) -> PredictionSites:
        """Where the A predictions sit: one a cell, row by row, on the head's device."""
        return PredictionSites(self.centers, None, self.stride, self.num_classes, self.class_names)

    @property
    def cells(self) -> CenterCells:
        """The A cells, on the head's device."""
        return CenterCells(self.centers, self.grid.cell_size)

    @property
    def classes(self) -> ClassesOfParts:
        """Who tells which class."""
        return ClassesOfParts(self.class_order, self.part_of_class)

    def forward(self, bev: Tensor) -> CenterOutput:
        """Read the maps.

        Args:
            bev: ``(B, C, H, W)``.

        Raises:
            ValueError: for a map of another size than the range and the stride give.
        """
        if tuple(bev.shape[2:]) != self.grid.shape:
            raise ValueError(
                f"the head's cells need a map of {self.grid.shape}, got {tuple(bev.shape[2:])}; make "
                "POINT_CLOUD_RANGE a multiple of voxel size x FEATURE_MAP_STRIDE"
            )
        shared = self.shared_conv(bev)
        parts: Any = self.heads_list
        return tuple(PartMaps(**{name: branch(shared).float() for name, branch in part.items()}) for part in parts)

    def decode(self, output: CenterOutput) -> DensePredictions:
        """Make boxes of the raw maps; no gradient flows through the boxes.

        Args:
            output: of :meth:`forward`.

        Returns:
            Predictions of the A cells, classes in the detector's order; the logits keep their gradient. Where several
            parts say something of a cell, the box is that of the part with the best class.
        """
        logits = self.classes.join([maps.hm for maps in output])
        return DensePredictions(logits, self.classes.best_boxes(logits, self._boxes_of_parts(output)))

    def box_codes(self, output: CenterOutput) -> BoxCodes:
        """Give the regressed values ``(B, A, P, 8)`` of the P parts."""
        names = tuple(tuple(self.class_names[label] for label in labels) for labels in self.labels_of_parts)
        return BoxCodes(join_codes([maps.codes for maps in output]), names)

    def _boxes_of_parts(self, output: CenterOutput) -> Tensor:
        """Decode the boxes ``(B, A, P, 7)`` of the P parts."""
        return self.cells.decode([maps.codes for maps in output])

    def losses(self, output: CenterOutput, batch: Batch) -> dict[str, Tensor]:
        """Compare the raw maps with the objects of a batch.

        Args:
            output: of :meth:`forward`.
            batch: whose objects to look for; frames without any are all background.

        Returns:
            ``hm_loss_head_0`` and ``loc_loss_head_0``, and so on for every part: weighted scalars.
        """
        weights, found = self.config.loss_config.loss_weights, {}
        with torch.autocast(output[0].hm.device.type, enabled=False):
            for number, (maps, targets) in enumerate(zip(output, self.assign_targets(batch), strict=True)):
                codes = maps.codes.flatten(2)[targets.frames, :, targets.cells]
                found[f"hm_loss_head_{number}"] = weights.cls_weight * heatmap_loss(maps.hm, targets.heatmap)
                loc_loss = regression_loss(codes, targets.codes, self.code_weights)
                found[f"loc_loss_head_{number}"] = weights.loc_weight * loc_loss
        return found

    def assign_targets(self, batch: Batch) -> list[CenterTargets]:
        """Say what every part should find in a batch."""
        assign = partial(assign_centers, self.grid, self.config.target_assigner_config, batch.gt_boxes, batch.gt_labels)
        return [assign(labels) for labels in self.labels_of_parts]

    @torch.no_grad()
    def detect(self, output: CenterOutput, config: CommonPostProcessing) -> list[Detections]:
        """Apply the IoU refinement, the limits of DENSE_HEAD.POST_PROCESSING and NMS, part by part.

        Args:
            output: of :meth:`forward`, B frames.
            config: what the IoU branch does; by default, its mask where there is a branch.

        Returns:
            B times what all parts found, best first.
        """
        boxes = self._boxes_of_parts(output)
        settings = config.iou_refinement or IoURefinement(mode="mask" if self.has_iou_branch else "none")
        return [self._detect_frame(output, boxes[frame], frame, settings) for frame in range(len(boxes))]

    def _detect_frame(self, output: CenterOutput, boxes: Tensor, frame: int, settings: IoURefinement) -> Detections:
        """Join what the parts find in one frame, whose boxes are ``(A, P, 7)``."""
        found = [self._detect_part(number, maps, boxes, frame, settings) for number, maps in enumerate(output)]
        order = torch.cat([part.scores for part in found]).argsort(descending=True, stable=True)
        names = (field.name for field in fields(Detections))
        return Detections(**{name: torch.cat([getattr(part, name) for part in found])[order] for name in names})

    def _detect_part(
        self, number: int, maps: PartMaps, boxes: Tensor, frame: int, settings: IoURefinement
    ) -> Detections:
        scores = maps.hm[frame].flatten(1).T.sigmoid()
        iou = None if maps.iou is None else maps.iou[frame].flatten(1).T.sigmoid()
        scores, keep = refine_scores(scores, iou, settings)
        found = detect_centers(boxes[:, number], scores, keep, self.config.post_processing)
        return replace(found, labels=found.labels.new_tensor(self.labels_of_parts[number])[found.labels])


@DENSE_HEADS.register("CenterHeadIoU")
class CenterHeadIoU(CenterHead):
    """A center head that also predicts, for every cell and class, how well its box overlaps an object.

    Args:
        config: the section's keys.
        in_channels: channels of the map.
        class_names: classes by label.
        geometry: the range that the map covers.

    Source: CaKDP (Zhang et al., CVPR 2024), section 3.4.
    """

    Config = CenterHeadIoUConfig
    has_iou_branch = True
    config: CenterHeadIoUConfig

    def _branches(self, num_classes: int) -> dict[str, nn.Module]:
        return {**super()._branches(num_classes), "iou": self._scores(num_classes, 2, refinement.PRIOR_PROBABILITY)}

    def decode(self, output: CenterOutput) -> DensePredictions:
        """Make boxes of the raw maps, the IoU branch's logits beside them."""
        found = super().decode(output)
        return DensePredictions(found.cls_logits, found.boxes, self._iou_logits(output))

    def _iou_logits(self, output: CenterOutput) -> Tensor:
        maps = [part.iou for part in output if part.iou is not None]
        if len(maps) != len(output):
            raise ValueError("every part needs its iou map; give the output of this head's own forward")
        return self.classes.join(maps)

    def losses(self, output: CenterOutput, batch: Batch) -> dict[str, Tensor]:
        """Compare the raw maps with the objects of a batch; ``iou_loss`` (Eq. 6) joins the others."""
        found = super().losses(output, batch)
        with torch.autocast(output[0].hm.device.type, enabled=False):
            found["iou_loss"] = refinement.center_branch_loss(
                self.config.iou_head,
                self._iou_logits(output),
                self.cells,
                lambda: self.classes.boxes_of_classes(self._boxes_of_parts(output)),
                batch.gt_boxes,
                batch.gt_labels,
            )
        return found


def _start_regressing(module: nn.Module) -> None:
    """Give a convolution of a regressing branch weights that keep the scale of what it reads (He et al., 2015)."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
