"""The libraries that one might use instead, and the questions put to them that take more than a line."""

from __future__ import annotations

import importlib
from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor

from cakdp_ext import ops

OPENPCDET = "OpenPCDet"


def _load(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError):  # what is not installed, or built for another PyTorch
        return None


def _load_openpcdet() -> SimpleNamespace | None:
    """OpenPCDet's own ops; None where its compiled modules are not there, or something stands in for them."""
    stack = "pcdet.ops.pointnet2.pointnet2_stack"
    names = {
        "boxes": "pcdet.ops.iou3d_nms.iou3d_nms_utils",
        "box_utils": "pcdet.utils.box_utils",
        "rois": "pcdet.ops.roiaware_pool3d.roiaware_pool3d_utils",
        "points": f"{stack}.pointnet2_utils",
        "voxels": f"{stack}.voxel_query_utils",
        "box_kernels": "pcdet.ops.iou3d_nms.iou3d_nms_cuda",
        "roi_kernels": "pcdet.ops.roiaware_pool3d.roiaware_pool3d_cuda",
        "point_kernels": f"{stack}.pointnet2_stack_cuda",
    }
    if not torch.cuda.is_available():
        return None
    modules = {key: _load(name) for key, name in names.items()}
    if not all(modules.values()):
        return None
    compiled = all((modules[key].__file__ or "").endswith((".so", ".pyd")) for key in modules if "kernels" in key)
    return SimpleNamespace(**modules) if compiled else None


openpcdet = _load_openpcdet()
shapely = _load("shapely")
spatial = _load("scipy.spatial")
torchvision = _load("torchvision")
fpsample = _load("fpsample")

LIBRARIES = {
    OPENPCDET: openpcdet,
    "shapely": shapely,
    "scipy": spatial and _load("scipy"),
    "torchvision": torchvision,
    "fpsample": fpsample,
}


def describe() -> str:
    """Which of them are there, and their versions."""
    words = []
    for name, library in LIBRARIES.items():
        version = getattr(_load("pcdet") if name == OPENPCDET and library else library, "__version__", "")
        words.append(f"{name} {version}".rstrip() if library else f"{name} absent")
    return ", ".join(words) + ("" if openpcdet else f" ({OPENPCDET}'s compiled ops need CUDA)")


def polygons(boxes: Tensor) -> object:
    """shapely's polygons of boxes ``(N, 7)``."""
    return shapely.polygons(ops.box_corners(boxes.cpu().double())[:, :4, :2].numpy())


def shapely_overlaps(boxes1: Tensor, boxes2: Tensor) -> object:
    """Areas of the candidate pairs that shapely's spatial index finds."""
    first, second = polygons(boxes1), polygons(boxes2)
    place2, place1 = shapely.STRtree(first).query(second)
    return shapely.area(shapely.intersection(first[place1], second[place2]))


def shapely_aligned_overlaps(boxes1: Tensor, boxes2: Tensor) -> object:
    """Areas that boxes share one to one."""
    return shapely.area(shapely.intersection(polygons(boxes1), polygons(boxes2)))


def openpcdet_overlap(run_name: str, boxes1: Tensor, boxes2: Tensor, *shape: int) -> Tensor:
    """What OpenPCDet's kernel of a name fills in, where its Python offers no function."""
    out = boxes1.new_zeros(shape)
    getattr(openpcdet.box_kernels, run_name)(boxes1, boxes2, out)
    return out


def openpcdet_voxel_query(
    queries: Tensor, query_xyz: Tensor, voxels: Tensor, voxel_xyz: Tensor, grid: tuple[int, int, int]
) -> object:
    """OpenPCDet's query, with the dense grid of rows that it looks into; ranges of 4, 0.4 m, 16 samples."""
    rows = torch.full((1, *grid), -1, dtype=torch.int32, device=voxels.device)
    rows[tuple(voxels.unbind(1))] = torch.arange(len(voxels), dtype=torch.int32, device=voxels.device)
    return openpcdet.voxels.voxel_query((4, 4, 4), 0.4, 16, voxel_xyz, query_xyz, queries, rows)


def upright_rectangles(boxes: Tensor) -> Tensor:
    """``(N, 4)`` x and y ends of boxes, headings ignored."""
    center, half = boxes[:, :2], boxes[:, 3:5] / 2
    return torch.cat((center - half, center + half), dim=1)


def nearest_rectangles(boxes: Tensor) -> Tensor:
    """The same of boxes turned to the nearest multiple of 90 degrees."""
    lies_across = (torch.sin(boxes[:, 6]).abs() > torch.cos(boxes[:, 6]).abs())[:, None]
    sizes = torch.where(lies_across, boxes[:, [4, 3]], boxes[:, 3:5])
    return torch.cat((boxes[:, :2] - sizes / 2, boxes[:, :2] + sizes / 2), dim=1)
