"""Where would a two-stage detector of OpenPCDet's look itself?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cakdp_ext.contract import EncodedScene, TeacherRois
from cakdp_ext.openpcdet.dense import is_center_head

MAPS = "cakdp_maps"
"""Where a batch keeps the raw maps of its dense head, of which a center head makes RoIs."""


@torch.no_grad()
def propose(detector: Any, encoded: EncodedScene) -> TeacherRois:
    """Let a detector choose RoIs as its own evaluation does.

    Anchors: NMS of ROI_HEAD.NMS_CONFIG.TEST over the first stage. Center heads: their own top-k, thresholds and NMS.

    Args:
        detector: in eval mode, with a dense head and a RoI head.
        encoded: of its ``encode``, B frames.

    Returns:
        The RoIs; where anchors made them, with the anchors' indices.
    """
    if is_center_head(detector.dense_head):
        return _of_centers(detector.dense_head, encoded.features[MAPS]["pred_dicts"])
    first = encoded.predictions
    data = {
        "batch_size": len(first.boxes),
        "batch_cls_preds": first.cls_logits.float(),
        "batch_box_preds": first.boxes.float(),
        "cls_preds_normalized": False,
    }
    head = detector.roi_head
    data = head.proposal_layer(data, nms_config=head.model_cfg.NMS_CONFIG["TEST"])
    rois, labels = data["rois"][..., :7], data["roi_labels"].long() - 1
    is_valid = _is_box(rois)
    return TeacherRois(rois, labels.clamp(min=0), is_valid, _rows_of(rois, data["batch_box_preds"], is_valid))


def _of_centers(head: Any, maps: list[Mapping[str, Tensor]]) -> TeacherRois:
    size = len(maps[0]["hm"])
    found = head.generate_predicted_boxes(size, [{name: m.float() for name, m in part.items()} for part in maps])
    rois, _, labels = head.reorder_rois_for_refining(size, found)
    rois = rois[..., :7]
    return TeacherRois(rois, (labels.long() - 1).clamp(min=0), _is_box(rois))


def _is_box(rois: Tensor) -> Tensor:
    """Tell RoIs from padding, rows of zeros."""
    return (rois != 0).any(dim=2)


def _rows_of(rois: Tensor, boxes: Tensor, is_valid: Tensor) -> Tensor:
    """Find which rows of ``boxes (B, A, 7)`` the RoIs ``(B, K, 7)`` are copies of: ``(B, K)``, 0 where padded.

    Raises:
        RuntimeError: for a RoI that is none of them.
    """
    rows = torch.zeros_like(is_valid, dtype=torch.int64)
    for frame, chosen in enumerate(is_valid):
        is_same = torch.ones(int(chosen.sum()), boxes.shape[1], dtype=torch.bool, device=boxes.device)
        for axis in range(7):
            is_same &= rois[frame, chosen, None, axis] == boxes[frame, :, axis]
        if not bool(is_same.any(dim=1).all()):
            raise RuntimeError("the RoI head proposes boxes that its first stage did not predict; use METHOD SKD")
        rows[frame, chosen] = is_same.int().argmax(dim=1)
    return rows
