"""What the IoU branch makes of the predictions that go into OpenPCDet's post-processing."""

from __future__ import annotations

from typing import Any

import torch

from cakdp_ext.refinement import IoURefinement, refine_scores


def refine_batch(batch_dict: dict[str, Any], settings: IoURefinement) -> dict[str, Any]:
    """Mask or rescore the predictions of an anchor head.

    Args:
        batch_dict: after the dense head, with ``batch_iou_logits (B, A, C)`` where there is an IoU branch.
        settings: what to do.

    Returns:
        The batch itself where there is nothing to do; else a shallow copy whose predictions are those that may go to
        NMS, in OpenPCDet's form for frames of different counts: ``(N, ...)`` rows and ``batch_index (N,)``.
    """
    iou_logits = batch_dict.get("batch_iou_logits")
    if iou_logits is None or settings.mode == "none":
        return batch_dict
    is_rescored = settings.mode == "rescore"
    rows: list[tuple[torch.Tensor, ...]] = []
    for frame, logits in enumerate(batch_dict["batch_cls_preds"]):
        scores, keep = refine_scores(logits.sigmoid(), iou_logits[frame].sigmoid(), settings)
        boxes = batch_dict["batch_box_preds"][frame][keep]
        rows.append(((scores if is_rescored else logits)[keep], boxes, boxes.new_full((len(boxes),), float(frame))))
    cls_preds, box_preds, batch_index = (torch.cat(column) for column in zip(*rows, strict=True))
    return {
        **batch_dict,
        "batch_cls_preds": cls_preds,
        "batch_box_preds": box_preds,
        "batch_index": batch_index,
        "cls_preds_normalized": is_rescored,
    }
