"""What do OpenPCDet's modules leave in a ``batch_dict`` that a distillation method may look at?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cakdp_ext.config import ConfigError
from cakdp_ext.openpcdet.dense import box_codes, decode
from cakdp_ext.taps import ENCODED, BevFeatures, SparseFeatures, Taps, VoxelFeatures
from cakdp_ext.types import DensePredictions, LidarGeometry, Role, Roles
from cakdp_ext.voxel_rows import find_rows, voxel_keys

STAGES: Mapping[str, Roles] = {
    "vfe": frozenset(Role),
    "backbone_3d": frozenset(Role) - {Role.VOXELS},
    "map_to_bev_module": frozenset(Role) - {Role.VOXELS, Role.SPARSE},
    "backbone_2d": frozenset(Role) - {Role.VOXELS, Role.SPARSE},
}
"""The modules in front of the dense head, and the roles that need each of them."""
OF_HEAD: Roles = frozenset({Role.DENSE, Role.BOXES, Role.SECOND_STAGE})


def taps_of(model: Any, data: Mapping[str, Any], maps: Mapping[str, Any] | None, roles: Roles) -> Taps:
    """Show what is asked for.

    Args:
        model: detector of OpenPCDet's under our faces.
        data: ``batch_dict`` as the modules that the roles need have left it.
        maps: raw maps of the dense head; None where no role needs it.
        roles: what to show.

    Raises:
        ConfigError: for a role that this detector's modules do not serve.
    """
    given: dict[Role, Any] = {}
    if Role.VOXELS in roles:
        given[Role.VOXELS] = _voxels(data, model.geometry)
    if Role.SPARSE in roles:
        given[Role.SPARSE] = _sparse(data)
    if Role.BEV in roles:
        given[Role.BEV] = BevFeatures(_of(data, "spatial_features"), _of(data, "spatial_features_2d"))
    if maps is not None and Role.DENSE in roles:
        predictions: DensePredictions = decode(model.dense_head, maps)
        given[Role.DENSE] = predictions
    if maps is not None and Role.BOXES in roles:
        given[Role.BOXES] = box_codes(model.dense_head, maps)
    return Taps(model.sites, given)


def _of(data: Mapping[str, Any], key: str) -> Any:
    if key not in data:
        raise ConfigError(f"no module of this detector leaves {key} in the batch, which the distillation METHOD needs")
    return data[key]


def _sparse(data: Mapping[str, Any]) -> dict[str, SparseFeatures]:
    scales = dict(data.get("multi_scale_3d_features") or {})
    strides = dict(data.get("multi_scale_3d_strides") or {})
    scales[ENCODED] = _of(data, "encoded_spconv_tensor")
    strides[ENCODED] = _of(data, "encoded_spconv_tensor_stride")
    return {name: SparseFeatures.of(scale, strides[name]) for name, scale in scales.items()}


def _voxels(data: Mapping[str, Any], geometry: LidarGeometry) -> VoxelFeatures:
    """Read the voxels; networks that sort the points themselves leave no counts, so these are counted here."""
    features = _of(data, "pillar_features" if "pillar_features" in data else "voxel_features")
    coords = _of(data, "voxel_coords").long()
    counts = data.get("voxel_num_points")
    if counts is None or len(counts) != len(coords):
        counts = _count_points(_of(data, "points"), coords, geometry)
    return VoxelFeatures(features, coords, counts.long())


def _count_points(points: Tensor, coords: Tensor, geometry: LidarGeometry) -> Tensor:
    """Count the points ``(N, 1 + F)`` in each voxel ``(V, 4)``."""
    low, size = (points.new_tensor(values) for values in (geometry.point_cloud_range[:3], geometry.voxel_size))
    cells = ((points[:, 1:4] - low) / size).floor().long()
    is_inside = ((cells >= 0) & (cells < cells.new_tensor(geometry.grid_size))).all(dim=1)
    held = torch.cat([points[:, :1].long(), cells.flip(1)], dim=1)[is_inside]
    found = find_rows(voxel_keys(coords), voxel_keys(held))
    return torch.bincount(found[found >= 0], minlength=len(coords))
