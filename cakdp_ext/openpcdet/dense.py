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
from cakdp_ext.refinement import CenterCells, IoUHeadConfig
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


def has_iou_branch(head: Any) -> bool:
    """Tell whether a head is one of ours that predict an IoU for every class; OpenPCDet's own IoU maps do not count."""
    return isinstance(getattr(head, "iou_config", None), IoUHeadConfig)


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
    _check_size(head, maps[0]["hm"])
    logits = per_class(head, maps, "hm")
    boxes = boxes_of_heads(head, maps)
    best_head = _head_of_class(head, logits.device)[logits.detach().argmax(dim=2)]
    boxes = boxes.take_along_dim(best_head[:, :, None, None], dim=2).squeeze(2)
    return DensePredictions(logits, boxes, per_class(head, maps, "iou") if has_iou_branch(head) else None)


def per_class(head: Any, maps: Sequence[Mapping[str, Tensor]], name: str) -> Tensor:
    """Bring the maps ``(B, C_h, H, W)`` of a CenterHead's parts into one, in the order of the detector's classes.

    Args:
        head: CenterHead.
        maps: ``pred_dicts`` of the head.
        name: ``hm`` or ``iou``.

    Returns:
        ``(B, H * W, C)`` float32, with gradient.
    """
    joined = torch.cat([part[name].flatten(2).transpose(1, 2) for part in maps], dim=2).float()
    order = torch.cat(list(head.class_id_mapping_each_head)).to(joined.device)
    return joined[:, :, order.argsort()]


def _check_size(head: Any, heatmap: Tensor) -> None:
    """Refuse a map whose cells are not those that the head's stride says."""
    width, height = (int(size) // head.feature_map_stride for size in head.grid_size[:2])
    if heatmap.shape[2:] != (height, width):
        raise ConfigError(
            f"the map of {type(head).__name__} has {heatmap.shape[3]} x {heatmap.shape[2]} cells, but voxels, "
            f"POINT_CLOUD_RANGE and FEATURE_MAP_STRIDE {head.feature_map_stride} give {width} x {height}; the stride "
            "must be that of the backbones, and the range a multiple of voxel size x stride"
        )


def boxes_of_classes(head: Any, maps: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Decode the boxes that a CenterHead predicts in each cell, without gradient.

    Returns:
        ``(B, H * W, 7)`` where one part tells all classes, else ``(B, H * W, C, 7)``.
    """
    boxes = boxes_of_heads(head, maps)
    return boxes[:, :, 0] if len(maps) == 1 else boxes[:, :, _head_of_class(head, boxes.device)]


def boxes_of_heads(head: Any, maps: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Decode the boxes ``(B, H * W, P, 7)`` of a CenterHead's P parts, row by row of the map, without gradient."""
    return torch.stack([_boxes_of_cells(head, part) for part in maps], dim=2)


def _head_of_class(head: Any, device: torch.device) -> Tensor:
    """Give ``(C,)`` int64: which of the heads tells each class."""
    owners = torch.zeros(sum(map(len, head.class_id_mapping_each_head)), dtype=torch.long, device=device)
    for index, classes in enumerate(head.class_id_mapping_each_head):
        owners[classes.to(device)] = index
    return owners


@torch.no_grad()
def _boxes_of_cells(head: Any, maps: Mapping[str, Tensor]) -> Tensor:
    """Decode ``(B, H * W, 7)`` boxes of one head, row by row of the map."""
    rows = {name: maps[name].detach().float().flatten(2) for name in ("center", "center_z", "dim", "rot")}
    centers = _positions(head, maps["center"].shape[2:], rows["center"])
    heading = torch.atan2(rows["rot"][:, 1:2], rows["rot"][:, 0:1])
    return torch.cat([centers, rows["center_z"], rows["dim"].exp(), heading], dim=1).transpose(1, 2)


def _positions(head: Any, size: Sequence[int], offsets: Tensor) -> Tensor:
    """Give metric x, y ``(..., 2, H * W)`` of offsets, in cells, from each cell's lower corner, row by row."""
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    cells = torch.stack([x.reshape(-1), y.reshape(-1)]).to(offsets)
    start = offsets.new_tensor([float(low) for low in head.point_cloud_range[:2]])
    return (cells + offsets) * offsets.new_tensor(_cell_size(head))[:, None] + start[:, None]


def _cell_size(head: Any) -> tuple[float, float]:
    """Give metres of a CenterHead's cell along x and y."""
    width, length = (float(size) * head.feature_map_stride for size in head.voxel_size[:2])
    return width, length


def cells_of(head: Any, maps: Mapping[str, Tensor]) -> CenterCells:
    """Give the cells of a CenterHead's map, row by row.

    Args:
        head: CenterHead.
        maps: of one of its parts.
    """
    half = maps["center"].new_full((2, 1), 0.5, dtype=torch.float32)
    return CenterCells(_positions(head, maps["center"].shape[2:], half).T, _cell_size(head))


def sites_of(head: Any, geometry: LidarGeometry) -> PredictionSites:
    """Say where the predictions of a head sit.

    Args:
        head: AnchorHeadSingle, CenterHead, or a subclass.
        geometry: of the data set that the head was built for.

    Returns:
        Sites on the head's device.
    """
    if is_center_head(head):
        centers = geometry.cell_centers(head.feature_map_stride).to(next(head.parameters()).device)
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
