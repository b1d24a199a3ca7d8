"""How is a network looked at? With a frame of no data set, in eval mode, and left as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product

import torch
from torch import nn

from cakdp_ext.types import Batch, LidarGeometry


def example_frame(geometry: LidarGeometry, device: torch.device | str = "cpu") -> Batch:
    """Make a frame with some columns of voxels in the middle of the range, of one point each.

    They fill the whole height, so that every layer sees something, however it puts heights into channels.

    Args:
        geometry: range, voxels and features of a point.
        device: where it lies.
    """
    across = (range(max(size // 2 - 2, 0), min(size // 2 + 2, size)) for size in geometry.grid_size[1::-1])
    zyx = torch.tensor(list(product(range(geometry.grid_size[2]), *across)))
    low, size = torch.tensor(geometry.point_cloud_range[:3]), torch.tensor(geometry.voxel_size)
    points = torch.zeros(len(zyx), geometry.num_point_features)
    points[:, :3] = low + (zyx.flip(1) + 0.5) * size
    frame = Batch(
        batch_size=1,
        voxels=points[:, None],
        voxel_coords=torch.cat([torch.zeros(len(zyx), 1), zyx], dim=1).int(),
        voxel_num_points=torch.ones(len(zyx), dtype=torch.int32),
        gt_boxes=torch.zeros(1, 0, 7),
        gt_labels=torch.zeros(1, 0, dtype=torch.int64),
        frame_ids=("example",),
        points=torch.cat([torch.zeros(len(zyx), 1), points], dim=1),
    )
    return frame.to(device)


@contextmanager
def evaluating(model: object) -> Iterator[None]:
    """Hold a network in eval mode without gradients, then give every module its own mode back.

    What is no ``nn.Module`` has no mode. Gradients are off by ``no_grad``, not by inference mode, which a caller may be
    in: what a network caches on the way stays fit for training.
    """
    modes = {module: module.training for module in model.modules()} if isinstance(model, nn.Module) else {}
    for module in modes:
        module.training = False
    try:
        with torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
