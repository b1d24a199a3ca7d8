"""What every second stage does: it chooses rois, samples them in training, judges them and refines their boxes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cakdp_ext.detectors.box_coder import ResidualCoder
from cakdp_ext.detectors.roi_heads import roi_losses
from cakdp_ext.detectors.roi_heads.proposals import Proposals, propose
from cakdp_ext.detectors.roi_heads.roi_config import RoiHeadConfig
from cakdp_ext.detectors.roi_heads.roi_frame import at_origin, from_roi_frame
from cakdp_ext.detectors.roi_heads.roi_targets import RoiTargets, sample_targets
from cakdp_ext.types import Batch, DensePredictions


@dataclass(frozen=True)
class RoiOutput:
    """What the second stage says about K rois a frame, float32, with gradient in training.

    Attributes:
        cls_logits: ``(B, K, 1)`` raw.
        deltas: ``(B, K, 7)`` residuals of the object's box in the frame of the roi.
    """

    cls_logits: Tensor
    deltas: Tensor


class RoiHead(nn.Module):
    """Base of RoI heads; a subclass says what it looks at and how it judges.

    Attributes:
        View: the type of what it looks at: what a detector's ``focus`` gives. A detector that shows another is refused.

    Args:
        config: the section's keys.
    """

    View: ClassVar[type]
    code_weights: Tensor

    def __init__(self, config: RoiHeadConfig) -> None:
        super().__init__()
        self.config: Any = config
        self.coder = ResidualCoder()
        weights = config.loss_config.loss_weights
        self.register_buffer("code_weights", torch.tensor(weights.code_weights), persistent=False)

    def judge(self, view: Any, rois: Tensor) -> tuple[Tensor, Tensor]:
        """Judge rois.

        Args:
            view: what the head looks at, of B frames.
            rois: ``(B, K, 7)`` metres and radians, at least one.

        Returns:
            ``(B * K, 1)`` raw logits and ``(B * K, 7)`` residuals, in the order of the rois.
        """
        raise NotImplementedError

    def propose(self, predictions: DensePredictions) -> Proposals:
        """Choose rois among the first stage's boxes, by the rules of training or of evaluation."""
        phases = self.config.nms_config
        return propose(predictions, phases.train if self.training else phases.test)

    def sample(self, proposals: Proposals, batch: Batch) -> RoiTargets:
        """Draw the rois of a training step and compare them with the objects of the batch."""
        with torch.autocast(proposals.rois.device.type, enabled=False):
            return sample_targets(proposals, batch.gt_boxes, batch.gt_labels, self.config.target_config)

    def forward(self, view: Any, rois: Tensor) -> RoiOutput:
        """Judge rois.

        Args:
            view: what the head looks at, of B frames.
            rois: ``(B, K, 7)`` metres and radians; padding of zeros is judged like any other.

        Returns:
            One row a roi, in the given order; no rows for K = 0.
        """
        num_frames, num_rois = rois.shape[:2]
        if num_rois == 0:
            return RoiOutput(rois.new_zeros(num_frames, 0, 1), rois.new_zeros(num_frames, 0, self.coder.code_size))
        return RoiOutput(*(rows.float().view(num_frames, num_rois, -1) for rows in self.judge(view, rois)))

    def decode(self, output: RoiOutput, rois: Tensor) -> Tensor:
        """Make boxes of the residuals.

        Args:
            output: of :meth:`forward`.
            rois: ``(B, K, 7)`` that it was asked about.

        Returns:
            ``(B, K, 7)`` in the LiDAR frame.
        """
        with torch.autocast(rois.device.type, enabled=False):
            rois = rois.float()
            return from_roi_frame(self.coder.decode(output.deltas, at_origin(rois)), rois)

    def losses(self, output: RoiOutput, targets: RoiTargets) -> dict[str, Tensor]:
        """Compare what was said about the sampled rois with their targets.

        Args:
            output: of :meth:`forward` for ``targets.rois``.
            targets: of :meth:`sample`.

        Returns:
            ``rcnn_cls_loss``, ``rcnn_reg_loss`` and, where the config asks for it, ``rcnn_corner_loss``: weighted
            scalars, 0 where no roi counts.
        """
        config, is_foreground = self.config.loss_config, targets.is_foreground
        weights = config.loss_weights
        anchors, boxes = at_origin(targets.rois[is_foreground]), targets.boxes[is_foreground]
        deltas = output.deltas[is_foreground]
        with torch.autocast(deltas.device.type, enabled=False):
            cls_loss = roi_losses.roi_class_loss(output.cls_logits.flatten(), targets.cls_targets.flatten())
            reg_loss = roi_losses.roi_residual_loss(deltas, self.coder.encode(boxes, anchors), self.code_weights)
            found = {
                "rcnn_cls_loss": weights.rcnn_cls_weight * cls_loss,
                "rcnn_reg_loss": weights.rcnn_reg_weight * reg_loss,
            }
            if config.corner_loss_regularization:
                corner_loss = roi_losses.corner_loss(self.coder.decode(deltas, anchors), boxes)
                found["rcnn_corner_loss"] = weights.rcnn_corner_weight * corner_loss
        return found
