"""OpenPCDet's detectors as the method and the engine know detectors."""

from __future__ import annotations

from copy import copy, deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from cakdp_ext.config import ConfigError
from cakdp_ext.contract import EncodedScene, TeacherRois, TrainingOutput
from cakdp_ext.openpcdet.batches import to_batch_dict
from cakdp_ext.openpcdet.dense import raw_maps, sites_of
from cakdp_ext.openpcdet.proposals import MAPS, propose
from cakdp_ext.openpcdet.shown import OF_HEAD, STAGES, taps_of
from cakdp_ext.pruning.layers import is_tensor_like, values_of, with_values
from cakdp_ext.taps import Taps
from cakdp_ext.types import (
    PREDICTIONS,
    Batch,
    DensePredictions,
    Detections,
    LidarGeometry,
    PredictionSites,
    Roles,
    to_device,
)

SECOND_STAGE = ("pfe", "point_head", "roi_head")
"""Set abstraction and point heads serve the RoIs only; PV-RCNN++'s even looks at them."""


class DetectorFaces:
    """Mixin in front of a class of OpenPCDet's: a ``OneStageStudent``, or a ``TwoStageTeacher`` with a RoI head.

    Given a ``batch_dict`` the detector does what it always did; given a :class:`Batch` it speaks our types.
    """

    dense_head: Any
    roi_head: Any
    dataset: Any
    model_cfg: Any
    training: bool
    _sites: PredictionSites | None = None

    def forward(self, batch: Any) -> Any:
        """Detect, or train.

        Args:
            batch: OpenPCDet's ``batch_dict``, or a ``Batch`` of either engine.

        Returns:
            OpenPCDet's own answer to a ``batch_dict``. For a ``Batch``: in training the losses, else the
            detections of each frame.
        """
        if not isinstance(batch, Batch):
            return super().forward(batch)  # type: ignore[misc]
        answer = super().forward(to_batch_dict(batch))  # type: ignore[misc]
        if self.training:
            return TrainingOutput({"loss": answer[0]["loss"]})
        return [to_detections(found) for found in answer[0]]

    @property
    def geometry(self) -> LidarGeometry:
        """Range and voxels of the data set it was built for."""
        return geometry_of(self.dataset)

    @property
    def sites(self) -> PredictionSites:
        """Where the predictions of its dense head sit: one object for as long as it stays on its device."""
        device = next(self.dense_head.parameters()).device
        if self._sites is None or self._sites.centers.device != device:
            self._sites = to_device(sites_of(self.dense_head, self.geometry), device)
        return self._sites

    @property
    def recall_thresholds(self) -> tuple[float, ...]:
        """IoUs at which recalled objects are counted."""
        return tuple(self.model_cfg.POST_PROCESSING.RECALL_THRESH_LIST)

    def predict_dense(self, batch: Batch) -> DensePredictions:
        """Give the raw predictions without targets, losses, mask or NMS."""
        return self._show(to_batch_dict(batch), PREDICTIONS).dense

    def _show(self, data: dict[str, Any], roles: Roles) -> Taps:
        """Run the modules that the roles need, and none behind them."""
        for name, needed_by in STAGES.items():
            module = getattr(self, name, None)
            if module is not None and roles & needed_by:
                data.update(module(data))
        if roles & OF_HEAD:
            data[MAPS] = raw_maps(self.dense_head, data["spatial_features_2d"])
        return taps_of(self, data, data.get(MAPS), roles)

    def encode(self, batch: Batch, roles: Roles = PREDICTIONS) -> EncodedScene:
        """Run the first stage as far as the roles need it; no proposals, no NMS.

        Args:
            batch: B frames.
            roles: what to show.

        Raises:
            ConfigError: where there is no dense head.
        """
        self.require_dense_head()
        data = to_batch_dict(batch)
        data["dataset_cfg"] = getattr(self.dataset, "dataset_cfg", None)  # where SECONDHead reads range and voxels
        return EncodedScene(self._show(data, roles), data)

    def propose(self, encoded: EncodedScene) -> TeacherRois:
        """Give the RoIs of its own evaluation, without gradient.

        Args:
            encoded: of :meth:`encode`, B frames.

        Raises:
            RuntimeError: in training mode.
        """
        if self.training:
            raise RuntimeError("propose gives the rois of an evaluation; call .eval() on the teacher first")
        with torch.autocast(encoded.predictions.boxes.device.type, enabled=False):
            return propose(self, encoded)

    def require_dense_head(self) -> None:
        """Refuse to teach without a first stage that says something everywhere.

        Raises:
            ConfigError: saying what there is not.
        """
        if getattr(self, "dense_head", None) is None:
            raise ConfigError(f"{type(self).__name__} has no dense head; a teacher needs one, as VoxelRCNN has")

    def require_two_stages(self) -> None:
        """Refuse to judge boxes without a second stage that judges any box.

        Raises:
            ConfigError: saying what there is not.
        """
        self.require_dense_head()
        if getattr(self, "roi_head", None) is None:
            raise ConfigError(
                f"{type(self).__name__} has no RoI head; MODEL.DISTILL.METHOD asks the teacher's second stage, as "
                "VoxelRCNN has one"
            )
        if hasattr(self, "reset_memorybank"):
            raise ConfigError(
                f"{type(self).__name__} judges boxes that it has followed through several frames, not any box; "
                "use a teacher such as VoxelRCNN"
            )

    def refine(self, encoded: EncodedScene, rois: Tensor) -> Tensor:
        """Judge boxes that this detector need not have proposed.

        Under autocast too it computes in float32: OpenPCDet's compiled pooling knows nothing else.

        Args:
            encoded: of :meth:`encode`, B frames.
            rois: ``(B, K, 7)`` metres and radians.

        Returns:
            ``(B, K, 1)`` or ``(B, K, C)`` raw logits of the second stage; ``(B, 0, C)`` for none.

        Raises:
            RuntimeError: in training mode.
        """
        if self.training:
            raise RuntimeError("refine judges in eval mode only; call .eval() on the teacher first")
        num_frames, num_rois = rois.shape[:2]
        if num_rois == 0:
            return rois.new_zeros(num_frames, 0, self.roi_head.num_class)
        data: dict[str, Any] = _in_float32(dict(encoded.features))
        data["rois"] = rois.contiguous()
        data["roi_scores"] = rois.new_zeros(num_frames, num_rois)
        data["roi_labels"] = torch.ones(num_frames, num_rois, dtype=torch.long, device=rois.device)
        data["has_class_labels"] = True
        data["batch_cls_preds"], data["batch_box_preds"] = encoded.predictions.cls_logits, encoded.predictions.boxes
        data["cls_preds_normalized"] = False
        with torch.autocast(rois.device.type, enabled=False):
            for name in SECOND_STAGE:
                module = getattr(self, name, None)
                if module is not None:
                    data.update(module(data))
        logits: Tensor = data["batch_cls_preds"]
        return logits.reshape(num_frames, num_rois, -1)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Copy the network; data set and teacher are shared with the copy, a head's last batch is left behind."""
        for name in ("dataset", "_distillation"):
            shared = self.__dict__.get(name)
            memo[id(shared)] = shared
        for name in ("dense_head", "point_head", "roi_head"):
            last = getattr(getattr(self, name, None), "forward_ret_dict", None)
            if last is not None:
                memo[id(last)] = {}
        duplicate = copy(self)
        memo[id(self)] = duplicate
        duplicate.__dict__ = deepcopy(self.__dict__, memo)
        return duplicate


def _in_float32(value: Any) -> Any:
    """Bring tensors of half precision, sparse ones and those in a dictionary too, to float32."""
    if type(value) is dict:
        return {key: _in_float32(item) for key, item in value.items()}
    is_half = is_tensor_like(value) and values_of(value).dtype in (torch.float16, torch.bfloat16)
    return with_values(value, values_of(value).float()) if is_half else value


def with_faces(detector: type[nn.Module]) -> type[nn.Module]:
    """Give a class of OpenPCDet's our faces; one that has them is returned as it is."""
    if issubclass(detector, DetectorFaces):
        return detector
    return type(detector.__name__, (DetectorFaces, detector), {"__module__": detector.__module__})


def geometry_of(dataset: Any) -> LidarGeometry:
    """Read range, voxels and features from a data set of OpenPCDet's."""
    return LidarGeometry(
        point_cloud_range=tuple(_decimal(value) for value in dataset.point_cloud_range),  # type: ignore[arg-type]
        voxel_size=tuple(_decimal(value) for value in dataset.voxel_size),  # type: ignore[arg-type]
        num_point_features=int(dataset.point_feature_encoder.num_point_features),
    )


def _decimal(value: Any) -> float:
    """Read a number that was stored as float32 as what was written in the YAML."""
    return float(str(value.item() if hasattr(value, "item") and value.dtype.itemsize > 4 else value))


def to_detections(found: dict[str, Tensor]) -> Detections:
    """Read one frame of OpenPCDet's ``pred_dicts``, whose labels start at 1."""
    return Detections(found["pred_boxes"][:, :7], found["pred_scores"], found["pred_labels"].long() - 1)
