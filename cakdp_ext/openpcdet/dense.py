"""What do OpenPCDet's dense heads say about every one of their sites?

Both kinds keep their raw maps in ``forward_ret_dict`` during a forward; here they are computed without targets, NMS or
losses, or read from there, and decoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cakdp_ext.config import ConfigError
from cakdp_ext.types import DensePredictions, LidarGeometry, PredictionSites

_ANCHOR_MAPS = {
    "cls_preds": "conv_cls",
    "box_preds": "conv_box",
    "dir_cls_preds": "conv_dir_cls",
    "iou_preds": "conv_iou",
}


def is_center_head(head: Any) -> bool:
    """Tell a CenterHead from an AnchorHeadSingle.

    Raises:
        ConfigError: for any other dense head.
    """
    if hasattr(head, "heads_list") and hasattr(head, "shared_conv"):
        return True
    if hasattr(head, "conv_cls") and hasattr(head, "conv_box") and hasattr(head, "anchors"):
        return False
    raise ConfigError(
        f"{type(head).__name__} is neither an AnchorHeadSingle nor a CenterHead; only these two can be scored, "
        "distilled or teach"
    )


def raw_maps(head: Any, bev_features: Tensor) -> dict[str, Any]:
    """Run a head's convolutions alone.

    Args:
        head: AnchorHeadSingle, CenterHead, or a subclass.
        bev_features: ``(B, C, H, W)``, ``spatial_features_2d`` of the batch.

    Returns:
        What the head keeps in ``forward_ret_dict`` before targets, with gradient.
    """
    if is_center_head(head):
        shared = head.shared_conv(bev_features)
        return {"pred_dicts": [part(shared) for part in head.heads_list]}
    convs = {name: getattr(head, conv, None) for name, conv in _ANCHOR_MAPS.items()}
    return {
        name: conv(bev_features).permute(0, 2, 3, 1).contiguous() for name, conv in convs.items() if conv is not None
    }


def decode(head: Any, maps: Mapping[str, Any]) -> DensePredictions:
    """Turn a head's raw maps into predictions.

    Args:
        head: whose maps they are.
        maps: of :func:`raw_maps`, or ``forward_ret_dict`` after a forward and before ``get_loss``.

    Returns:
        Logits with gradient, in the classes' own order, float32; boxes without gradient.
    """
    return _decode_centers(head, maps["pred_dicts"]) if is_center_head(head) else _decode_anchors(head, maps)


def _decode_anchors(head: Any, maps: Mapping[str, Any]) -> DensePredictions:
    size = len(maps["cls_preds"])
    raw = {name: maps[name].detach() for name in ("cls_preds", "box_preds", "dir_cls_preds") if name in maps}
    _, boxes = head.generate_predicted_boxes(
        batch_size=size, **{"dir_cls_preds": None, **{name: value.float() for name, value in raw.items()}}
    )
    iou = maps.get("iou_preds")
    logits = maps["cls_preds"].reshape(size, boxes.shape[1], -1).float()
    return DensePredictions(logits, boxes[..., :7], None if iou is None else iou.reshape(logits.shape).float())


def _decode_centers(head: Any, maps: Sequence[Mapping[str, Tensor]]) -> DensePredictions:
    """Decode the maps of a CenterHead, whose cells are taken by the head with the best class of each."""
    logits = _per_class(head, [part["hm"] for part in maps])
    boxes = torch.stack([_boxes_of_cells(head, part) for part in maps], dim=2)
    best_head = _head_of_class(head, logits.device)[logits.detach().argmax(dim=2)]
    boxes = boxes.take_along_dim(best_head[:, :, None, None], dim=2).squeeze(2)
    has_iou = all("iou" in part for part in maps)
    return DensePredictions(logits, boxes, _per_class(head, [part["iou"] for part in maps]) if has_iou else None)


def _per_class(head: Any, maps: Sequence[Tensor]) -> Tensor:
    """Bring each head's ``(B, C_h, H, W)`` into one ``(B, H * W, C)`` in the order of the detector's classes."""
    joined = torch.cat([part.flatten(2).transpose(1, 2) for part in maps], dim=2).float()
    order = torch.cat(list(head.class_id_mapping_each_head)).to(joined.device)
    return joined[:, :, order.argsort()]


def _head_of_class(head: Any, device: torch.device) -> Tensor:
    """Give ``(C,)`` int64: which of the heads tells each class."""
    owners = torch.zeros(sum(map(len, head.class_id_mapping_each_head)), dtype=torch.long, device=device)
    for index, classes in enumerate(head.class_id_mapping_each_head):
        owners[classes.to(device)] = index
    return owners


@torch.no_grad()
def _boxes_of_cells(head: Any, maps: Mapping[str, Tensor]) -> Tensor:
    """Decode ``(B, H * W, 7)`` boxes of one head, row by row of the map."""
    height, width = maps["center"].shape[2:]
    rows = {name: maps[name].detach().float().flatten(2) for name in ("center", "center_z", "dim", "rot")}
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    cells = torch.stack([x.reshape(-1), y.reshape(-1)]).to(rows["center"])
    step = cells.new_tensor([float(size) for size in head.voxel_size[:2]]) * head.feature_map_stride
    start = cells.new_tensor([float(low) for low in head.point_cloud_range[:2]])
    centers = (cells + rows["center"]) * step[:, None] + start[:, None]
    heading = torch.atan2(rows["rot"][:, 1:2], rows["rot"][:, 0:1])
    return torch.cat([centers, rows["center_z"], rows["dim"].exp(), heading], dim=1).transpose(1, 2)


def sites_of(head: Any, geometry: LidarGeometry) -> PredictionSites:
    """Say where the predictions of a head sit.

    Args:
        head: AnchorHeadSingle, CenterHead, or a subclass.
        geometry: of the data set that the head was built for.

    Returns:
        Sites on the head's device.
    """
    if is_center_head(head):
        device = next(head.parameters()).device
        centers = geometry.cell_centers(head.feature_map_stride).to(device)
        return PredictionSites(centers, None, head.feature_map_stride, len(head.class_names))
    anchors = anchors_of(head)
    stride = head.model_cfg.ANCHOR_GENERATOR_CONFIG[0]["feature_map_stride"]
    cells = geometry.cell_centers(stride)
    centers = cells.repeat_interleave(len(anchors) // len(cells), dim=0).to(anchors)
    return PredictionSites(centers, anchors, stride, head.num_class)


def anchors_of(head: Any) -> Tensor:
    """Give the ``(A, 7)`` anchors of an AnchorHeadSingle in the order of its predictions."""
    joined = torch.cat(list(head.anchors), dim=-3)
    return joined.reshape(-1, joined.shape[-1])[:, :7]


def home_of(head: Any) -> torch.device:
    """Tell where a head keeps what is no buffer, such as anchors: on the GPU from the start."""
    kept: Tensor = head.class_id_mapping_each_head[0] if is_center_head(head) else head.anchors[0]
    return kept.device
