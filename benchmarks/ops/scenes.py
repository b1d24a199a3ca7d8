"""What the ops are asked about: boxes, points and voxels of KITTI's kind and number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cakdp_ext import ops

GRID = (21, 800, 704)
VOXEL_SIZE = (0.1, 0.1, 0.2)


@dataclass
class Scene:
    """The inputs, each made when it is asked for, from a seed of its own.

    Attributes:
        device: where they lie.
        quick: make them a fiftieth as many, to see that all runs.
        threads: how many a library may take that is told by an argument.
    """

    device: torch.device
    quick: bool
    threads: int

    def number(self, full: int) -> int:
        """How many to take of what there would be so many of."""
        return math.ceil(full / 50) if self.quick else full

    def counts(self, *numbers: int) -> Tensor:
        """Rows of each frame, as OpenPCDet's ops want them."""
        return torch.tensor(numbers, dtype=torch.int32, device=self.device)

    def normal(self, *shape: int) -> Tensor:
        """Features or gradients."""
        return torch.randn(*shape, generator=_seeded(0)).to(self.device)

    @cached_property
    def anchors(self) -> Tensor:
        return boxes_on_a_road(self.number(211_200), _seeded(1)).to(self.device)

    @cached_property
    def truth(self) -> Tensor:
        return boxes_on_a_road(40, _seeded(2)).to(self.device)

    @cached_property
    def proposals(self) -> Tensor:
        return crowded(self.number(16_384), _seeded(3)).to(self.device)

    @cached_property
    def scores(self) -> Tensor:
        return torch.rand(self.number(16_384), generator=_seeded(4)).to(self.device)

    @cached_property
    def two_crowds(self) -> tuple[Tensor, Tensor]:
        """A thousand boxes twice, that meet."""
        boxes = self.proposals[: 2 * self.number(1000)]
        return boxes[::2].contiguous(), boxes[1::2].contiguous()

    @cached_property
    def box_pairs(self) -> tuple[Tensor, Tensor]:
        """Boxes one to one, most of which overlap."""
        count = self.number(4096)
        return self.proposals[:count], self.proposals[1 : count + 1]

    @cached_property
    def field_points(self) -> Tensor:
        """Points spread evenly over KITTI's range."""
        points = torch.rand(self.number(120_000), 3, generator=_seeded(5))
        return (points * torch.tensor([70.4, 80, 3]) - torch.tensor([0, 40, 2.5])).to(self.device)

    @cached_property
    def voxels(self) -> Tensor:
        return occupied_voxels(self.number(60_000), GRID, _seeded(6)).to(self.device)

    @cached_property
    def voxel_queries(self) -> Tensor:
        """The grid points of 128 RoIs, each in an occupied voxel."""
        chosen = torch.randint(len(self.voxels), (self.number(128 * 216),), generator=_seeded(7))
        return self.voxels[chosen.to(self.device)]

    def voxel_centers(self, voxels: Tensor) -> Tensor:
        """Metres ``(V, 3)`` of voxels ``(batch, z, y, x)``."""
        return voxels[:, [3, 2, 1]] * torch.tensor(VOXEL_SIZE, device=self.device)

    @cached_property
    def scan(self) -> Tensor:
        return scanned_points(self.number(40_000), _seeded(8)).to(self.device)

    @cached_property
    def scan_keypoints(self) -> Tensor:
        return self.scan[ops.farthest_point_sampling(self.scan[None], self.number(4096))[0]]

    @cached_property
    def cloud(self) -> Tensor:
        return points_around_a_sensor(self.number(60_000), _seeded(9)).to(self.device)

    @cached_property
    def rois(self) -> Tensor:
        """128 boxes, each around a point of the cloud."""
        rois, near = boxes_on_a_road(128, _seeded(10)), torch.randint(len(self.cloud), (128,), generator=_seeded(11))
        rois[:, :3] = self.cloud.cpu()[near]
        return rois.to(self.device)

    @cached_property
    def cloud_keypoints(self) -> Tensor:
        chosen = torch.randint(len(self.cloud), (self.number(2048),), generator=_seeded(12))
        return self.cloud[chosen.to(self.device)] + 0.1


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def boxes_on_a_road(count: int, generator: torch.Generator) -> Tensor:
    """Car-sized boxes (count, 7), float32, over KITTI's range."""
    boxes = torch.rand(count, 7, generator=generator)
    boxes[:, :3] = boxes[:, :3] * torch.tensor([70.4, 80, 1]) - torch.tensor([0, 40, 1.5])
    boxes[:, 3:6] = torch.tensor([3.9, 1.6, 1.56]) * (0.8 + 0.4 * boxes[:, 3:6])
    boxes[:, 6] = (boxes[:, 6] - 0.5) * 2 * math.pi
    return boxes


def crowded(count: int, generator: torch.Generator) -> Tensor:
    """What a dense head proposes: about twenty jittered boxes around each object."""
    boxes = boxes_on_a_road(math.ceil(count / 20), generator).repeat_interleave(20, dim=0)[:count]
    return boxes + torch.randn(boxes.shape, generator=generator) * torch.tensor([0.4, 0.4, 0.1, 0.1, 0.1, 0.1, 0.2])


def occupied_voxels(count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Distinct cells (V, 4), V at most ``count``, dense near the middle of the grid."""
    cells = torch.randn(count, 3, generator=generator) * torch.tensor(shape) / 8 + torch.tensor(shape) / 2
    cells = cells.round().clamp(min=torch.zeros(3), max=torch.tensor(shape) - 1.0).long().unique(dim=0)
    return torch.cat((torch.zeros(len(cells), 1, dtype=torch.int64), cells), dim=1)


def scanned_points(count: int, generator: torch.Generator) -> Tensor:
    """Points (count, 3), float32, dense near the sensor as a scan's are: 64 beams that meet the ground or an object."""
    beam = torch.deg2rad(torch.linspace(-24.8, 2, 64))[torch.randint(64, (count,), generator=generator)]
    azimuth = (torch.rand(count, generator=generator) - 0.5) * math.pi / 2
    ground = torch.where(beam < 0, 1.73 / torch.sin(-beam), torch.inf)
    reach = torch.minimum(5 + 65 * torch.rand(count, generator=generator) ** 2, ground)
    reach = reach + 0.02 * torch.randn(count, generator=generator)
    x, y = torch.cos(beam) * torch.cos(azimuth), torch.cos(beam) * torch.sin(azimuth)
    return reach[:, None] * torch.stack((x, y, torch.sin(beam)), dim=1)


def points_around_a_sensor(count: int, generator: torch.Generator) -> Tensor:
    """Points (count, 3) to all sides, the denser the nearer."""
    angle = torch.rand(count, generator=generator) * 2 * math.pi
    distance = 2 - 15 * torch.rand(count, generator=generator).log()
    height = torch.rand(count, generator=generator) * 3 - 2
    return torch.stack((distance * angle.cos(), distance * angle.sin(), height), dim=1)
