"""What a ROI_HEAD section may say: frozen settings read from the YAML once, when the head is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cakdp_ext.config import ConfigError, from_node


@dataclass(frozen=True)
class ProposalSettings:
    """Which first-stage boxes become rois (``NMS_CONFIG.TRAIN`` and ``NMS_CONFIG.TEST``).

    Attributes:
        nms_thresh: BEV IoU above which the lower-scored box goes.
        nms_pre_maxsize: boxes that enter NMS.
        nms_post_maxsize: rois of a frame.
        score_thresh: least class score, in [0, 1].
        nms_type: ``nms_gpu`` for rotated boxes, ``nms_normal_gpu`` for their axis-aligned versions.
        multi_classes_nms: must be False; proposals are class-agnostic.
        use_fast_nms: accepted for OpenPCDet's files, without effect there and here.
    """

    nms_thresh: float
    nms_pre_maxsize: int
    nms_post_maxsize: int
    score_thresh: float = 0.0
    nms_type: str = "nms_gpu"
    multi_classes_nms: bool = False
    use_fast_nms: bool = False

    def __post_init__(self) -> None:
        if self.multi_classes_nms:
            raise ValueError("MULTI_CLASSES_NMS must be False: proposals of a roi head are class-agnostic")
        if self.nms_type not in ("nms_gpu", "nms_normal_gpu"):
            raise ValueError(f"NMS_TYPE must be nms_gpu or nms_normal_gpu, got {self.nms_type!r}")
        if min(self.nms_pre_maxsize, self.nms_post_maxsize) < 1:
            raise ValueError("NMS_PRE_MAXSIZE and NMS_POST_MAXSIZE must be at least 1")

    @property
    def is_axis_aligned(self) -> bool:
        """Whether NMS ignores headings."""
        return self.nms_type == "nms_normal_gpu"


@dataclass(frozen=True)
class ProposalPhases:
    """Proposal settings of training and of evaluation (``NMS_CONFIG``)."""

    train: ProposalSettings
    test: ProposalSettings


@dataclass(frozen=True)
class TargetSettings:
    """How rois are sampled and what they shall predict (``TARGET_CONFIG``).

    Attributes:
        roi_per_image: rois sampled from a frame.
        fg_ratio: largest share of foreground rois among them.
        cls_fg_thresh: IoU from which the class target is 1.
        cls_bg_thresh: IoU up to which the class target is 0.
        cls_bg_thresh_lo: IoU below which a background roi counts as easy.
        hard_bg_ratio: share of hard rois among the background ones.
        reg_fg_thresh: IoU above which a roi is regressed.
        sample_roi_by_each_class: whether a roi only meets objects of its own class.
        cls_score_type: ``roi_iou`` for soft targets between the thresholds, ``cls`` for ignoring that range.
        box_coder: name of the box coder.
        box_coder_config: its arguments.
    """

    roi_per_image: int
    fg_ratio: float
    cls_fg_thresh: float
    cls_bg_thresh: float
    cls_bg_thresh_lo: float
    hard_bg_ratio: float
    reg_fg_thresh: float
    sample_roi_by_each_class: bool = False
    cls_score_type: str = "roi_iou"
    box_coder: str = "ResidualCoder"
    box_coder_config: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.roi_per_image < 1:
            raise ValueError(f"ROI_PER_IMAGE must be at least 1, got {self.roi_per_image}")
        if self.cls_score_type not in ("roi_iou", "cls"):
            raise ValueError(f"CLS_SCORE_TYPE must be roi_iou or cls, got {self.cls_score_type!r}")
        if not self.cls_bg_thresh < self.cls_fg_thresh:
            raise ValueError(f"CLS_BG_THRESH {self.cls_bg_thresh} must lie below CLS_FG_THRESH {self.cls_fg_thresh}")
        if self.cls_bg_thresh_lo > self.fg_thresh:
            raise ValueError(f"CLS_BG_THRESH_LO {self.cls_bg_thresh_lo} must not exceed {self.fg_thresh}, the least IoU of foreground")
        for name in ("fg_ratio", "hard_bg_ratio"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name.upper()} must lie in [0, 1], got {getattr(self, name)}")

    @property
    def fg_thresh(self) -> float:
        """IoU from which a roi is sampled as foreground."""
        return min(self.reg_fg_thresh, self.cls_fg_thresh)


@dataclass(frozen=True)
class LossWeights:
    """Weights of the second stage's losses (``LOSS_WEIGHTS``)."""

    rcnn_cls_weight: float = 1.0
    rcnn_reg_weight: float = 1.0
    rcnn_corner_weight: float = 1.0
    rcnn_iou3d_weight: float = 1.0
    code_weights: tuple[float, ...] = (1.0,) * 7


@dataclass(frozen=True)
class LossSettings:
    """Which losses the second stage has (``LOSS_CONFIG``)."""

    loss_weights: LossWeights
    cls_loss: str = "BinaryCrossEntropy"
    reg_loss: str = "smooth-l1"
    corner_loss_regularization: bool = False
    grid_3d_iou_loss: bool = False

    def __post_init__(self) -> None:
        if self.cls_loss != "BinaryCrossEntropy":
            raise ValueError(f"CLS_LOSS must be BinaryCrossEntropy, got {self.cls_loss!r}")
        if self.reg_loss != "smooth-l1":
            raise ValueError(f"REG_LOSS must be smooth-l1, got {self.reg_loss!r}")
        if self.grid_3d_iou_loss:
            raise ValueError("GRID_3D_IOU_LOSS must be False: only the corner loss regularises boxes here")


@dataclass(frozen=True)
class PoolLayerSettings:
    """How one feature source is pooled (an entry of ``POOL_LAYERS``); list entries are scales.

    Attributes:
        mlps: per scale the two widths behind the source's own: of the grouped features, of the output.
        query_ranges: per scale the reach ``(z, y, x)`` in voxels of that source.
        pool_radius: per scale the reach in metres.
        nsample: per scale the voxels that a grid point pools.
        pool_method: ``max_pool`` or ``avg_pool``.
    """

    mlps: tuple[tuple[int, int], ...]
    query_ranges: tuple[tuple[int, int, int], ...]
    pool_radius: tuple[float, ...]
    nsample: tuple[int, ...]
    pool_method: str = "max_pool"

    def __post_init__(self) -> None:
        if len({len(self.mlps), len(self.query_ranges), len(self.pool_radius), len(self.nsample)}) != 1:
            raise ValueError("MLPS, QUERY_RANGES, POOL_RADIUS and NSAMPLE must have one entry a scale each")
        if any(len(widths) != 2 for widths in self.mlps):
            raise ValueError(f"each entry of MLPS must be two widths, got {list(self.mlps)}")
        if any(len(reach) != 3 for reach in self.query_ranges):
            raise ValueError(f"each entry of QUERY_RANGES must be (z, y, x), got {list(self.query_ranges)}")
        if self.pool_method not in ("max_pool", "avg_pool"):
            raise ValueError(f"POOL_METHOD must be max_pool or avg_pool, got {self.pool_method!r}")

    @property
    def out_channels(self) -> int:
        """Width of what is pooled, all scales together."""
        return sum(widths[-1] for widths in self.mlps)


@dataclass(frozen=True)
class GridPoolSettings:
    """Where a roi looks for its features (``ROI_GRID_POOL``).

    Attributes:
        features_source: names of the sparse feature maps, in the order they are concatenated.
        grid_size: grid points along each side of a roi.
        pool_layers: settings of each source.
        pre_mlp: accepted for OpenPCDet's files, without effect there and here.
    """

    features_source: tuple[str, ...]
    grid_size: int
    pool_layers: Mapping[str, Any]
    pre_mlp: bool = True

    def __post_init__(self) -> None:
        missing = [name for name in self.features_source if name not in self.pool_layers]
        if missing:
            raise ValueError(f"POOL_LAYERS has no entry for {', '.join(missing)} of FEATURES_SOURCE")
        if self.grid_size < 1:
            raise ValueError(f"GRID_SIZE must be at least 1, got {self.grid_size}")


@dataclass(frozen=True)
class RoiHeadSettings:
    """A ROI_HEAD section of kind VoxelRCNNHead.

    Attributes:
        name: of the head.
        class_agnostic: one logit and one box a roi, whatever its class.
        shared_fc: widths of the layers that both branches share.
        cls_fc: widths of the class branch.
        reg_fc: widths of the box branch.
        dp_ratio: dropout between two layers of a branch.
        nms_config: how proposals are chosen.
        roi_grid_pool: where features come from.
        target_config: how rois are sampled in training.
        loss_config: what they are trained with.
    """

    name: str
    shared_fc: tuple[int, ...]
    cls_fc: tuple[int, ...]
    reg_fc: tuple[int, ...]
    nms_config: ProposalPhases
    roi_grid_pool: GridPoolSettings
    target_config: TargetSettings
    loss_config: LossSettings
    dp_ratio: float = 0.0
    class_agnostic: bool = True


def read_roi_head(node: Mapping[str, Any], num_classes: int) -> RoiHeadSettings:
    """Read a ROI_HEAD section; the section itself is left as it is.

    Args:
        node: the section, UPPER_CASE keys.
        num_classes: classes of the detector.

    Raises:
        ConfigError: for an unknown, missing or unusable key.
    """
    where = "MODEL.ROI_HEAD"
    for name in ("LOSS_CONFIG", "ROI_GRID_POOL"):
        if not isinstance(node.get(name), Mapping):
            raise ConfigError(f"{where} has no section {name}; copy it from an OpenPCDet Voxel R-CNN configuration")
    losses, pooling = node["LOSS_CONFIG"], node["ROI_GRID_POOL"]
    weights = {key.upper(): value for key, value in losses.get("LOSS_WEIGHTS", {}).items()}
    layers = {
        name: from_node(PoolLayerSettings, layer, f"POOL_LAYERS.{name} of {where}")
        for name, layer in pooling.get("POOL_LAYERS", {}).items()
    }
    typed = {"LOSS_CONFIG": {**losses, "LOSS_WEIGHTS": weights}, "ROI_GRID_POOL": {**pooling, "POOL_LAYERS": layers}}
    settings = from_node(RoiHeadSettings, {**node, **typed}, where)
    if not settings.class_agnostic and num_classes > 1:
        raise ConfigError(f"{where}: CLASS_AGNOSTIC must be True for {num_classes} classes; a roi has one logit and one box")
    return settings
