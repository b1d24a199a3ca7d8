"""Small networks whose channel graphs can be written down by hand, and batches for them."""

from __future__ import annotations

from pathlib import Path

import spconv.pytorch as spconv
import torch
from torch import nn

from cakdp_ext.config import load_config
from cakdp_ext.detectors import build_detector
from cakdp_ext.types import Batch, LidarGeometry

GRID = (8, 8, 8)


def voxel_batch(seed=0, batch_size=1, grid=GRID, per_frame=60, num_features=4, prefix="frame"):
    generator = torch.Generator().manual_seed(seed)
    coords = []
    for frame in range(batch_size):
        zyx = (torch.rand(per_frame, 3, generator=generator) * torch.tensor(grid)).long().unique(dim=0)
        coords.append(torch.cat([torch.full((len(zyx), 1), frame), zyx], dim=1))
    coords = torch.cat(coords).int()
    return Batch(
        batch_size=batch_size,
        voxels=torch.randn(len(coords), 1, num_features, generator=generator),
        voxel_coords=coords,
        voxel_num_points=torch.ones(len(coords), dtype=torch.int32),
        gt_boxes=torch.zeros(batch_size, 0, 7),
        gt_labels=torch.zeros(batch_size, 0, dtype=torch.long),
        frame_ids=tuple(f"{prefix}{seed}_{i}" for i in range(batch_size)),
    )


def randomize(model, seed=0):
    """Give weights that matter and norms that are not the identity; some channels of the norms come out negative."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            nn.init.normal_(module.weight, 1.0, 0.3, generator=generator)
            nn.init.normal_(module.bias, 0.3, 0.5, generator=generator)
    return model.eval()


class SparseDense(nn.Module):
    """Sparse 3D, height flattening, a residual sum, a transposed convolution, a concatenation and a linear head."""

    def __init__(self, adds_in_place=False):
        super().__init__()
        self.adds_in_place = adds_in_place
        self.backbone_3d = nn.ModuleDict(
            {
                "fine": spconv.SparseSequential(
                    spconv.SubMConv3d(4, 6, 3, padding=1, bias=False, indice_key="fine"),
                    nn.BatchNorm1d(6),
                    nn.ReLU(inplace=True),
                ),
                "down": spconv.SparseSequential(
                    spconv.SparseConv3d(6, 5, 3, stride=2, padding=1, bias=False, indice_key="down"),
                    nn.BatchNorm1d(5),
                    nn.ReLU(),
                ),
            }
        )
        self.backbone_2d = nn.ModuleDict(
            {
                "stem": nn.Sequential(
                    nn.ZeroPad2d(1), nn.Conv2d(20, 7, 3, bias=False), nn.BatchNorm2d(7), nn.ReLU(inplace=True)
                ),
                "side": nn.Conv2d(7, 4, 1),
                "up": nn.ConvTranspose2d(7, 3, 1),
                "residual": nn.Sequential(nn.Conv2d(7, 7, 3, padding=1), nn.BatchNorm2d(7)),
            }
        )
        self.dense_head = nn.Linear(7, 3)

    def forward(self, batch):
        features = batch.voxels[:, 0]
        voxels = spconv.SparseConvTensor(features, batch.voxel_coords, GRID, batch.batch_size)
        encoded = self.backbone_3d["down"](self.backbone_3d["fine"](voxels)).dense()
        bev = self.backbone_2d["stem"](encoded.flatten(1, 2))
        extra = self.backbone_2d["residual"](bev)
        if self.adds_in_place:
            extra += bev
            bev = extra.relu_()
        else:
            bev = torch.relu(bev + extra)
        bev = torch.cat([self.backbone_2d["up"](bev), self.backbone_2d["side"](bev)], dim=1)
        return self.dense_head(bev.permute(0, 2, 3, 1)).flatten(1, 2)


class SparseUNet(nn.Module):
    """Down, an inverse convolution back up, and a concatenation with what came before."""

    def __init__(self):
        super().__init__()
        self.backbone_3d = nn.ModuleDict(
            {
                "fine": spconv.SubMConv3d(4, 3, 3, padding=1, bias=False, indice_key="fine"),
                "down": spconv.SparseConv3d(3, 5, 3, stride=2, padding=1, bias=False, indice_key="down"),
                "up": spconv.SparseInverseConv3d(5, 4, 3, bias=False, indice_key="down"),
                "merge": spconv.SubMConv3d(7, 6, 1, bias=False),
                "plain": spconv.SparseConv3d(6, 2, 3, padding=1, bias=False),
            }
        )
        self.dense_head = nn.Linear(2, 3)

    def forward(self, batch):
        fine = self.backbone_3d["fine"](
            spconv.SparseConvTensor(batch.voxels[:, 0], batch.voxel_coords, GRID, batch.batch_size)
        )
        up = self.backbone_3d["up"](self.backbone_3d["down"](fine))
        merged = self.backbone_3d["merge"](up.replace_feature(torch.cat([up.features, fine.features], dim=1)))
        return self.dense_head(self.backbone_3d["plain"](merged).features.relu())[None]


def predict(model, batch):
    return model(batch)


def small_second():
    """The real SECOND on a small range, with narrow 2D blocks."""
    cfg = load_config(Path(__file__).resolve().parents[2] / "cfgs/kitti/second.yaml")
    cfg.MODEL.BACKBONE_2D.update(NUM_FILTERS=[8, 12], NUM_UPSAMPLE_FILTERS=[6, 10], LAYER_NUMS=[1, 2])
    geometry = LidarGeometry((0.0, -3.2, -3.0, 6.4, 3.2, 1.0), (0.05, 0.05, 0.1))
    torch.manual_seed(0)
    return randomize(build_detector(cfg.MODEL, cfg.CLASS_NAMES, geometry)), geometry


def second_batch(geometry, seed=0, batch_size=1):
    return voxel_batch(seed, batch_size, geometry.grid_size[::-1], per_frame=300)


def class_logits(model, batch):
    return model.predict_dense(batch).cls_logits
