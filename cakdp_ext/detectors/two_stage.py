"""Detectors of two stages: one proposes boxes, the other judges and refines them. These can teach."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from cakdp_ext.config import ConfigError, from_node
from cakdp_ext.contract import EncodedScene, TeacherRois, TrainingOutput
from cakdp_ext.detectors.first_stage import FirstStage, FirstStageOutput
from cakdp_ext.detectors.post_processing import PostProcessingConfig, select_labelled
from cakdp_ext.detectors.registry import ROI_HEADS, upper_keys
from cakdp_ext.detectors.roi_heads import Proposals, RoiHead
from cakdp_ext.detectors.roi_heads.proposals import as_proposals
from cakdp_ext.refinement import IoURefinement
from cakdp_ext.types import PREDICTIONS, Batch, Detections, LidarGeometry, Roles


@dataclass(frozen=True)
class RoiPredictions:
    """What the second stage made of the proposals of B frames.

    Attributes:
        cls_logits: ``(B, K, 1)`` raw.
        boxes: ``(B, K, 7)`` refined.
        labels: ``(B, K)`` int64 class that the first stage gave.
        is_valid: ``(B, K)`` bool, False where padded.
    """

    cls_logits: Tensor
    boxes: Tensor
    labels: Tensor
    is_valid: Tensor


@dataclass(frozen=True)
class _Scene:
    """What is kept of a batch between :meth:`TwoStageDetector.encode` and what is asked of it then."""

    first: FirstStageOutput
    look: Callable[[FirstStageOutput, Batch], Any]

    @cached_property
    def seen(self) -> Any:
        """All that the second stage needs before there are rois, computed when it is first asked."""
        return self.look(self.first, self.first.batch)


class TwoStageDetector(FirstStage):
    """A first stage that proposes and a second stage that judges and refines what was proposed.

    A subclass says what the second stage looks at: :meth:`look` gives what is known before there are rois,
    :meth:`focus` what is shown to the RoI head for given rois.

    Attributes:
        View: the type of what :meth:`focus` gives.

    Args:
        model_cfg: MODEL's mapping; copied.
        class_names: classes by label.
        geometry: range and voxel grid of the points.

    Raises:
        ConfigError: as :class:`FirstStage`, for a RoI head that looks at something else, and for a POST_PROCESSING that
            a second stage has no use for.
    """

    sections: ClassVar[frozenset[str]] = FirstStage.sections | {"ROI_HEAD"}
    View: ClassVar[type]
    post_processing: PostProcessingConfig
    roi_head: RoiHead

    def __init__(self, model_cfg: Mapping[str, Any], class_names: Sequence[str], geometry: LidarGeometry) -> None:
        super().__init__(model_cfg, class_names, geometry)
        self._check_roi_head(model_cfg)
        self.roi_head = ROI_HEADS.build(model_cfg, self.build_view(model_cfg), geometry)
        self.post_processing = from_node(
            PostProcessingConfig, upper_keys(model_cfg.get("POST_PROCESSING")), "MODEL.POST_PROCESSING"
        )
        refinement = self.post_processing.iou_refinement
        if self.post_processing.nms_config.multi_classes_nms or (refinement and refinement.mode != "none"):
            raise ConfigError(
                f"MODEL.POST_PROCESSING of a {type(self).__name__} knows neither MULTI_CLASSES_NMS nor "
                "IOU_REFINEMENT: its second stage gives one score a box"
            )

    def _check_roi_head(self, model_cfg: Mapping[str, Any]) -> None:
        name = (model_cfg.get("ROI_HEAD") or {}).get("NAME")
        if name is None:
            return  # the registry says what is missing
        head: Any = ROI_HEADS.find(name)
        if head.View is not self.View:
            raise ConfigError(
                f"MODEL.ROI_HEAD {name} looks at {head.View.__name__}, but a {type(self).__name__} shows "
                f"{self.View.__name__}; change MODEL.NAME or MODEL.ROI_HEAD"
            )

    def build_view(self, model_cfg: Mapping[str, Any]) -> Mapping[str, int]:
        """Build the modules between the dense head and the RoI head.

        Args:
            model_cfg: MODEL's mapping.

        Returns:
            Widths of what the RoI head looks at, by name.
        """
        raise NotImplementedError

    def look(self, first: FirstStageOutput, batch: Batch) -> Any:
        """Give all that the second stage needs of a batch, before there are rois.

        Args:
            first: what the first stage made of the batch.
            batch: B frames.
        """
        raise NotImplementedError

    def focus(self, seen: Any, rois: Tensor) -> Any:
        """Give what the RoI head looks at for these rois; by default, what is seen without them.

        Args:
            seen: of :meth:`look`.
            rois: ``(B, K, 7)``; rows of zeros are padding.
        """
        return seen

    def view_losses(self, view: Any, batch: Batch) -> dict[str, Tensor]:
        """Give the losses of the modules that :meth:`build_view` made, by name: weighted scalars; by default none.

        Args:
            view: of :meth:`focus`.
            batch: whose objects to look for.
        """
        return {}

    def forward(self, batch: Batch) -> TrainingOutput | list[Detections]:
        """Detect objects.

        Args:
            batch: on this module's device.

        Returns:
            In training mode the losses of both stages, else the detections of each frame.
        """
        first = self.run_first_stage(batch)
        seen, proposals = self.look(first, batch), self.choose_rois(first)
        if self.training:
            targets = self.roi_head.sample(proposals, batch)
            view = self.focus(seen, targets.rois)
            losses = self.roi_head.losses(self.roi_head(view, targets.rois), targets)
            return TrainingOutput(
                {**self.dense_head.losses(first.head, batch), **self.view_losses(view, batch), **losses}
            )
        output = self.roi_head(self.focus(seen, proposals.rois), proposals.rois)
        boxes = self.roi_head.decode(output, proposals.rois)
        return self.postprocess(RoiPredictions(output.cls_logits, boxes, proposals.labels, proposals.is_valid))

    def choose_rois(self, first: FirstStageOutput) -> Proposals:
        """Choose rois: by ROI_HEAD.NMS_CONFIG among the boxes of anchors, or what a center head detects.

        Args:
            first: what the first stage made of B frames.

        Source: CenterPoint (Yin et al., CVPR 2021), section 4, for centers.
        """
        if self.sites.anchors is not None:
            return self.roi_head.propose(self.dense_head.decode(first.head))
        settings = replace(self.post_processing, iou_refinement=IoURefinement(mode="none"))
        return as_proposals(self.dense_head.detect(first.head, settings))

    @torch.no_grad()
    def postprocess(self, predictions: RoiPredictions) -> list[Detections]:
        """Apply the score threshold and NMS, whatever the classes; padding is never detected."""
        scores = predictions.cls_logits.sigmoid().amax(dim=-1)
        frames = zip(predictions.boxes, scores, predictions.labels, predictions.is_valid, strict=True)
        return [select_labelled(*frame, self.post_processing) for frame in frames]

    def encode(self, batch: Batch, roles: Roles = PREDICTIONS) -> EncodedScene:
        """Run the first stage as far as the roles need it; no proposals, no NMS.

        What the second stage looks at is computed when it is first asked.

        Args:
            batch: on this module's device.
            roles: what to show.
        """
        first = FirstStageOutput(self, batch)
        return EncodedScene(first.taps(roles), _Scene(first, self.look))

    @torch.no_grad()
    def propose(self, encoded: EncodedScene) -> TeacherRois:
        """Choose rois as an evaluation does.

        Args:
            encoded: of :meth:`encode`, B frames.

        Returns:
            K rois a frame, without gradient.

        Raises:
            RuntimeError: in training mode, which has other thresholds.
        """
        if self.training:
            raise RuntimeError("propose gives the rois of an evaluation; call .eval() on the teacher first")
        found = self.choose_rois(encoded.features.first)
        return TeacherRois(found.rois, found.labels, found.is_valid, found.indices)

    def refine(self, encoded: EncodedScene, rois: Tensor) -> Tensor:
        """Judge boxes that this detector need not have proposed.

        Args:
            encoded: of :meth:`encode`, B frames.
            rois: ``(B, K, 7)`` metres and radians; rows of zeros, as padding, do no harm.

        Returns:
            ``(B, K, 1)`` logits, in the order of the rois; ``(B, 0, 1)`` for none.

        Raises:
            RuntimeError: in training mode, where dropout and batch norm would make the logits depend on each other.
            ValueError: for rois of another shape, or of another number of frames than were encoded.
        """
        if self.training:
            raise RuntimeError("refine judges in eval mode only; call .eval() on the teacher first")
        num_frames = encoded.features.first.batch.batch_size
        if rois.dim() != 3 or rois.shape[0] != num_frames or rois.shape[2] != 7:
            raise ValueError(
                f"rois must have shape ({num_frames}, K, 7) like the encoded frames, got {tuple(rois.shape)}"
            )
        return self.roi_head(self.focus(encoded.features.seen, rois), rois).cls_logits
