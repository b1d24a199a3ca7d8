"""What do OpenPCDet's dense heads say about every one of their sites?

Both kinds keep their raw maps in ``forward_ret_dict`` during a forward; here they are computed without targets, NMS or
losses, or read from there, and decoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cakdp_ext.center_maps import CenterCells, ClassesOfParts, codes_of, join_codes
from cakdp_ext.config import ConfigError
from cakdp_ext.refinement import IoUHeadConfig
from cakdp_ext.taps import BoxCodes
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
    classes = classes_of(head)
    logits = classes.join([part["hm"] for part in maps])
    iou = classes.join([part["iou"] for part in maps]) if has_iou_branch(head) else None
    return DensePredictions(logits, classes.best_boxes(logits, boxes_of_parts(head, maps)), iou)


def box_codes(head: Any, maps: Mapping[str, Any]) -> BoxCodes:
    """Give what a head regresses at each of its sites, raw and with gradient.

    Args:
        head: whose maps they are.
        maps: as for :func:`decode`.
    """
    if is_center_head(head):
        parts = tuple(map(tuple, head.class_names_each_head))
        return BoxCodes(join_codes([codes_of(part) for part in maps["pred_dicts"]]), parts)
    size, num_sites = len(maps["cls_preds"]), len(anchors_of(head))
    directions = maps.get("dir_cls_preds")
    return BoxCodes(
        maps["box_preds"].reshape(size, num_sites, 1, -1).float(),
        (tuple(head.class_names),) if head.num_class == len(head.class_names) else ((),),
        None if directions is None else directions.reshape(size, num_sites, -1).float(),
    )


def classes_of(head: Any) -> ClassesOfParts:
    """Say which part of a CenterHead tells which class, on the head's device."""
    device = next(head.parameters()).device
    return ClassesOfParts.of([labels.to(device) for labels in head.class_id_mapping_each_head])


def _check_size(head: Any, heatmap: Tensor) -> None:
    """Refuse a map whose cells are not those that the head's stride says."""
    width, height = (int(size) // head.feature_map_stride for size in head.grid_size[:2])
    if heatmap.shape[2:] != (height, width):
        raise ConfigError(
            f"the map of {type(head).__name__} has {heatmap.shape[3]} x {heatmap.shape[2]} cells, but voxels, "
            f"POINT_CLOUD_RANGE and FEATURE_MAP_STRIDE {head.feature_map_stride} give {width} x {height}; the stride "
            "must be that of the backbones, and the range a multiple of voxel size x stride"
        )


def boxes_of_parts(head: Any, maps: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Decode the boxes ``(B, A, P, 7)`` of the P parts of a CenterHead of A cells, row by row, without gradient."""
    return cells_of(head, maps[0]["hm"]).decode([codes_of(part) for part in maps])


def cells_of(head: Any, heatmap: Tensor) -> CenterCells:
    """Give the cells of a CenterHead's map, row by row.

    Args:
        head: CenterHead.
        heatmap: ``(B, C, H, W)`` of one of its parts.

    Raises:
        ConfigError: for a map of another size than range, voxels and stride give.
    """
    _check_size(head, heatmap)
    bounds, voxel_size = (tuple(map(float, values)) for values in (head.point_cloud_range, head.voxel_size))
    centers = LidarGeometry(bounds, voxel_size).cell_centers(head.feature_map_stride)  # type: ignore[arg-type]
    width, length = (size * head.feature_map_stride for size in voxel_size[:2])
    return CenterCells(centers.to(heatmap.device), (width, length))


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
        names = tuple(head.class_names)
        return PredictionSites(centers, None, head.feature_map_stride, len(names), names)
    anchors = anchors_of(head)
    stride = head.model_cfg.ANCHOR_GENERATOR_CONFIG[0]["feature_map_stride"]
    cells = geometry.cell_centers(stride)
    centers = cells.repeat_interleave(len(anchors) // len(cells), dim=0).to(anchors)
    names = tuple(head.class_names) if head.num_class == len(head.class_names) else ()
    return PredictionSites(centers, anchors, stride, head.num_class, names)


def anchors_of(head: Any) -> Tensor:
    """Give the ``(A, 7)`` anchors of an AnchorHeadSingle in the order of its predictions."""
    joined = torch.cat(list(head.anchors), dim=-3)
    return joined.reshape(-1, joined.shape[-1])[:, :7]


def home_of(head: Any) -> torch.device:
    """Tell where a head keeps what is no buffer, such as anchors: on the GPU from the start."""
    kept: Tensor = head.class_id_mapping_each_head[0] if is_center_head(head) else head.anchors[0]
    return kept.device
