"""What may a ROI_HEAD section say? Frozen dataclasses, one a subsection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cakdp_ext.config import from_node
from cakdp_ext.detectors.box_coder import ResidualCoder
from cakdp_ext.detectors.post_processing import NMS_TYPES


@dataclass(frozen=True)
class ProposalConfig:
    """Which first-stage boxes become rois (NMS_CONFIG.TRAIN and NMS_CONFIG.TEST).

    Attributes:
        nms_thresh: bird's-eye-view IoU above which the lower-scored box goes.
        nms_pre_maxsize: boxes that enter NMS.
        nms_post_maxsize: rois of a frame.
        score_thresh: least class score, in [0, 1].
        nms_type: ``nms_gpu`` for rotated boxes, ``nms_normal_gpu`` to ignore their headings.
        multi_classes_nms: must be False; proposals are class-agnostic.
        use_fast_nms: changes nothing; files for OpenPCDet have it.
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
            raise ValueError("MULTI_CLASSES_NMS must be False: the proposals of a roi head are class-agnostic")
        if self.nms_type not in NMS_TYPES:
            raise ValueError(f"NMS_TYPE must be one of {', '.join(NMS_TYPES)}, got {self.nms_type!r}")
        if min(self.nms_pre_maxsize, self.nms_post_maxsize) < 1:
            raise ValueError("NMS_PRE_MAXSIZE and NMS_POST_MAXSIZE must be at least 1")

    @property
    def is_axis_aligned(self) -> bool:
        """Whether NMS ignores headings."""
        return NMS_TYPES[self.nms_type]


@dataclass(frozen=True)
class ProposalPhasesConfig:
    """Proposals in training and in evaluation (NMS_CONFIG)."""

    train: ProposalConfig
    test: ProposalConfig


@dataclass(frozen=True)
class RoiTargetConfig:
    """How rois are sampled and what they shall predict (TARGET_CONFIG).

    Attributes:
        roi_per_image: rois sampled from a frame.
        fg_ratio: largest share of foreground rois among them.
        cls_fg_thresh: IoU from which the class target is 1.
        cls_bg_thresh: IoU up to which the class target is 0.
        cls_bg_thresh_lo: IoU below which a background roi counts as easy.
        hard_bg_ratio: share of hard rois among the background ones.
        reg_fg_thresh: IoU above which a roi is regressed.
        sample_roi_by_each_class: whether a roi only meets objects of its own class.
        cls_score_type: ``roi_iou`` for soft targets between the thresholds, ``cls`` to ignore that range.
        box_coder: must be ``ResidualCoder``.
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

    def __post_init__(self) -> None:
        if self.roi_per_image < 1:
            raise ValueError(f"ROI_PER_IMAGE must be at least 1, got {self.roi_per_image}")
        if self.cls_score_type not in ("roi_iou", "cls"):
            raise ValueError(f"CLS_SCORE_TYPE must be roi_iou or cls, got {self.cls_score_type!r}")
        if self.box_coder != "ResidualCoder":
            raise ValueError(f"BOX_CODER must be ResidualCoder, got {self.box_coder!r}")
        if not self.cls_bg_thresh < self.cls_fg_thresh:
            raise ValueError(f"CLS_BG_THRESH {self.cls_bg_thresh} must lie below CLS_FG_THRESH {self.cls_fg_thresh}")
        if self.cls_bg_thresh_lo > self.fg_thresh:
            raise ValueError(
                f"CLS_BG_THRESH_LO {self.cls_bg_thresh_lo} must not exceed {self.fg_thresh}, where foreground begins"
            )
        for name in ("fg_ratio", "hard_bg_ratio"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name.upper()} must lie in [0, 1], got {getattr(self, name)}")

    @property
    def fg_thresh(self) -> float:
        """IoU from which a roi is sampled as foreground."""
        return min(self.reg_fg_thresh, self.cls_fg_thresh)


@dataclass(frozen=True)
class RoiLossWeights:
    """Weights of the second stage's losses (LOSS_WEIGHTS); that of the IoU loss is read and not used."""

    rcnn_cls_weight: float = 1.0
    rcnn_reg_weight: float = 1.0
    rcnn_corner_weight: float = 1.0
    rcnn_iou3d_weight: float = 1.0
    code_weights: tuple[float, ...] = (1.0,) * ResidualCoder.code_size

    def __post_init__(self) -> None:
        if len(self.code_weights) != ResidualCoder.code_size:
            raise ValueError(f"code_weights needs {ResidualCoder.code_size} entries, got {self.code_weights}")


@dataclass(frozen=True)
class RoiLossConfig:
    """What the second stage is trained with (LOSS_CONFIG)."""

    loss_weights: RoiLossWeights
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
            raise ValueError("GRID_3D_IOU_LOSS must be False; use CORNER_LOSS_REGULARIZATION to regularise boxes")


@dataclass(frozen=True)
class PoolLayerConfig:
    """How one feature source is pooled (an entry of POOL_LAYERS); every list has one entry a scale.

    Attributes:
        mlps: the two widths behind the source's own: of the grouped features, of the output.
        query_ranges: reach ``(z, y, x)`` in voxels of that source.
        pool_radius: reach in metres.
        nsample: voxels that a grid point pools.
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
        for name, size, what in (("mlps", 2, "two widths"), ("query_ranges", 3, "a reach in z, y and x")):
            entries = getattr(self, name)
            if any(not isinstance(entry, list | tuple) or len(entry) != size for entry in entries):
                raise ValueError(f"each entry of {name.upper()} must be {what}, got {list(entries)}")
        if self.pool_method not in ("max_pool", "avg_pool"):
            raise ValueError(f"POOL_METHOD must be max_pool or avg_pool, got {self.pool_method!r}")

    @property
    def out_channels(self) -> int:
        """Width of what is pooled, all scales together."""
        return sum(width for _, width in self.mlps)


@dataclass(frozen=True)
class GridPoolConfig:
    """Where a roi looks for its features (ROI_GRID_POOL).

    Attributes:
        features_source: names of the sparse feature maps, in the order in which they are concatenated.
        grid_size: grid points along each side of a roi.
        pool_layers: a :class:`PoolLayerConfig` mapping a source, by name in either case.
        pre_mlp: changes nothing; files for OpenPCDet have it.
    """

    features_source: tuple[str, ...]
    grid_size: int
    pool_layers: Mapping[str, Any]
    pre_mlp: bool = True

    def __post_init__(self) -> None:
        if self.grid_size < 1:
            raise ValueError(f"GRID_SIZE must be at least 1, got {self.grid_size}")
        if not self.features_source:
            raise ValueError("FEATURES_SOURCE must name at least one feature map, e.g. x_conv4")
        for source in self.features_source:
            self.layer(source)

    def layer(self, source: str) -> PoolLayerConfig:
        """Give the settings of one source.

        Raises:
            ValueError: when there are none, or unusable ones.
        """
        node = {name.upper(): layer for name, layer in self.pool_layers.items()}.get(source.upper())
        if node is None:
            raise ValueError(f"POOL_LAYERS has no entry for {source} of FEATURES_SOURCE; add one")
        return from_node(PoolLayerConfig, node, f"POOL_LAYERS.{source}")


@dataclass(frozen=True, kw_only=True)
class RoiHeadConfig:
    """Keys that every ROI_HEAD section has.

    Attributes:
        nms_config: how proposals are chosen; a center head's own POST_PROCESSING takes its place.
        target_config: how rois are sampled in training.
        loss_config: what they are trained with.
        class_agnostic: must be True: one logit and one box a roi, whatever its class.
    """

    nms_config: ProposalPhasesConfig
    target_config: RoiTargetConfig
    loss_config: RoiLossConfig
    class_agnostic: bool = True

    def __post_init__(self) -> None:
        if not self.class_agnostic:
            raise ValueError("CLASS_AGNOSTIC must be True: this head gives one logit and one box a roi")


@dataclass(frozen=True, kw_only=True)
class VoxelRCNNHeadConfig(RoiHeadConfig):
    """A ROI_HEAD section of NAME VoxelRCNNHead.

    Attributes:
        shared_fc: widths of the layers that both branches share.
        cls_fc: widths of the class branch.
        reg_fc: widths of the box branch.
        roi_grid_pool: where features come from.
        dp_ratio: dropout between two layers of a branch.
    """

    shared_fc: tuple[int, ...]
    cls_fc: tuple[int, ...]
    reg_fc: tuple[int, ...]
    roi_grid_pool: GridPoolConfig
    dp_ratio: float = 0.0
