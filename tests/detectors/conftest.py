"""A small SECOND, its KITTI-sized configuration, and batches of random voxels and objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from cakdp_ext.config import load_config
from cakdp_ext.types import Batch, LidarGeometry

ROOT = Path(__file__).resolve().parents[2]
CLASS_NAMES = ("Car", "Pedestrian", "Cyclist")
SIZES = torch.tensor([[3.9, 1.6, 1.56], [0.8, 0.6, 1.73], [1.76, 0.6, 1.73]])
BOTTOMS = (-1.78, -0.6, -0.6)
THRESHOLDS = ((0.6, 0.45), (0.5, 0.35), (0.5, 0.35))


def _second_cfg() -> dict[str, Any]:
    anchors = [
        {
            "class_name": name,
            "anchor_sizes": [size.tolist()],
            "anchor_rotations": [0, 1.57],
            "anchor_bottom_heights": [bottom],
            "align_center": False,
            "feature_map_stride": 8,
            "matched_threshold": matched,
            "unmatched_threshold": unmatched,
        }
        for name, size, bottom, (matched, unmatched) in zip(CLASS_NAMES, SIZES, BOTTOMS, THRESHOLDS, strict=True)
    ]
    return {
        "NAME": "SECONDNet",
        "VFE": {"NAME": "MeanVFE"},
        "BACKBONE_3D": {"NAME": "VoxelBackBone8x"},
        "MAP_TO_BEV": {"NAME": "HeightCompression", "NUM_BEV_FEATURES": 256},
        "BACKBONE_2D": {
            "NAME": "BaseBEVBackbone",
            "LAYER_NUMS": [5, 5],
            "LAYER_STRIDES": [1, 2],
            "NUM_FILTERS": [128, 256],
            "UPSAMPLE_STRIDES": [1, 2],
            "NUM_UPSAMPLE_FILTERS": [256, 256],
        },
        "DENSE_HEAD": {
            "NAME": "AnchorHeadSingle",
            "CLASS_AGNOSTIC": False,
            "USE_DIRECTION_CLASSIFIER": True,
            "DIR_OFFSET": 0.78539,
            "DIR_LIMIT_OFFSET": 0.0,
            "NUM_DIR_BINS": 2,
            "ANCHOR_GENERATOR_CONFIG": anchors,
            "TARGET_ASSIGNER_CONFIG": {
                "NAME": "AxisAlignedTargetAssigner",
                "POS_FRACTION": -1.0,
                "SAMPLE_SIZE": 512,
                "NORM_BY_NUM_EXAMPLES": False,
                "MATCH_HEIGHT": False,
                "BOX_CODER": "ResidualCoder",
            },
            "LOSS_CONFIG": {
                "LOSS_WEIGHTS": {"cls_weight": 1.0, "loc_weight": 2.0, "dir_weight": 0.2, "code_weights": [1.0] * 7}
            },
        },
        "POST_PROCESSING": {
            "RECALL_THRESH_LIST": [0.3, 0.5, 0.7],
            "SCORE_THRESH": 0.1,
            "OUTPUT_RAW_SCORE": False,
            "EVAL_METRIC": "kitti",
            "NMS_CONFIG": {
                "MULTI_CLASSES_NMS": False,
                "NMS_TYPE": "nms_gpu",
                "NMS_THRESH": 0.01,
                "NMS_PRE_MAXSIZE": 4096,
                "NMS_POST_MAXSIZE": 500,
            },
        },
    }


@pytest.fixture
def second_cfg() -> dict[str, Any]:
    """MODEL as OpenPCDet's KITTI configuration of SECOND has it."""
    return _second_cfg()


@pytest.fixture
def small_cfg() -> dict[str, Any]:
    """The same topology with few 2D layers, and an IoU branch."""
    cfg = deepcopy(_second_cfg())
    cfg["BACKBONE_2D"].update(
        LAYER_NUMS=[1, 1], NUM_FILTERS=[16, 24], UPSAMPLE_STRIDES=[1, 2], NUM_UPSAMPLE_FILTERS=[16, 16]
    )
    cfg["DENSE_HEAD"]["NAME"] = "AnchorHeadSingleIoU"
    cfg["DENSE_HEAD"]["IOU_HEAD"] = {"LABEL": "anchor", "WEIGHT": 1.0}
    return cfg


@pytest.fixture
def center_cfg() -> dict[str, Any]:
    """MODEL of CenterPoint on KITTI, as it ships."""
    return load_config(ROOT / "cfgs" / "kitti" / "centerpoint.yaml")["MODEL"]


@pytest.fixture
def small_center_cfg(center_cfg) -> dict[str, Any]:
    """The same topology with few 2D layers, two parts whose classes are in another order, and an IoU branch."""
    center_cfg["BACKBONE_2D"].update(LAYER_NUMS=[1, 1], NUM_FILTERS=[16, 24], NUM_UPSAMPLE_FILTERS=[16, 16])
    center_cfg["DENSE_HEAD"].update(
        NAME="CenterHeadIoU",
        SHARED_CONV_CHANNEL=12,
        CLASS_NAMES_EACH_HEAD=[["Cyclist", "Car"], ["Pedestrian"]],
        IOU_HEAD={"LABEL": "decoded_box", "WEIGHT": 1.0},
    )
    center_cfg["DENSE_HEAD"]["POST_PROCESSING"]["POST_CENTER_LIMIT_RANGE"] = [0, -6.4, -3, 16, 6.4, 1]
    return center_cfg


@pytest.fixture(scope="session")
def class_names() -> tuple[str, ...]:
    """Classes by label."""
    return CLASS_NAMES


@pytest.fixture(scope="session")
def kitti_geometry() -> LidarGeometry:
    """KITTI's range and voxels, 1408 x 1600 x 40 of them."""
    return LidarGeometry((0.0, -40.0, -3.0, 70.4, 40.0, 1.0), (0.05, 0.05, 0.1), 4)


@pytest.fixture(scope="session")
def small_geometry() -> LidarGeometry:
    """A grid of 160 x 128 x 40 voxels, hence a map of 16 rows and 20 columns."""
    return LidarGeometry((0.0, -6.4, -3.0, 16.0, 6.4, 1.0), (0.1, 0.1, 0.1), 4)


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
        ),
    ]
)
def device(request: pytest.FixtureRequest) -> str:
    """Every device that a test runs on."""
    return str(request.param)


def random_objects(geometry: LidarGeometry, frames: int, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes ``(B, M, 7)`` near the anchors' sizes and labels ``(B, M)``; the last two rows of a frame are padding."""
    random = torch.Generator().manual_seed(seed)
    low, high = torch.tensor(geometry.point_cloud_range[:3]), torch.tensor(geometry.point_cloud_range[3:])
    centers = low + torch.rand(frames, count, 3, generator=random) * (high - low)
    centers[..., 2] = -1.0
    labels = torch.randint(0, len(SIZES), (frames, count), generator=random)
    sizes = SIZES[labels] * (0.9 + 0.2 * torch.rand(frames, count, 3, generator=random))
    headings = 8 * torch.rand(frames, count, 1, generator=random) - 4
    boxes = torch.cat([centers, sizes, headings], dim=-1)
    boxes[:, -2:], labels[:, -2:] = 0, -1
    return boxes, labels


def random_voxels(geometry: LidarGeometry, frames: Sequence[int], count: int, seed: int) -> tuple[torch.Tensor, ...]:
    """About ``count`` voxels ``(V, 5, 4)`` with coordinates and numbers of points in each of the frames named."""
    random = torch.Generator().manual_seed(seed)
    coords = [torch.zeros(0, 4, dtype=torch.int64)]
    for frame in frames:
        cells = [torch.randint(0, cells, (count,), generator=random) for cells in reversed(geometry.grid_size)]
        coords.append(torch.stack([torch.full((count,), frame), *cells], dim=1).unique(dim=0))
    voxel_coords = torch.cat(coords).int()
    num_points = torch.randint(1, 6, (len(voxel_coords),), generator=random).int()
    voxels = torch.rand(len(voxel_coords), 5, geometry.num_point_features, generator=random)
    return voxels * (torch.arange(5)[:, None] < num_points[:, None, None]), voxel_coords, num_points


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Batch]:
    """Make a batch of random voxels and objects; frames named in ``empty`` have neither."""

    def make(
        geometry: LidarGeometry, frames: int = 2, voxels: int = 300, objects: int = 6, empty: Sequence[int] = (), seed=0
    ) -> Batch:
        filled = [frame for frame in range(frames) if frame not in empty]
        boxes, labels = random_objects(geometry, frames, objects, seed)
        for frame in empty:
            boxes[frame], labels[frame] = 0, -1
        names = tuple(f"{frame:06d}" for frame in range(frames))
        return Batch(frames, *random_voxels(geometry, filled, voxels, seed), boxes, labels, names)

    return make
