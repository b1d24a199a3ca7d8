"""What may a section say about gathering the features of points? Frozen dataclasses for SA_LAYER and ROI_GRID_POOL."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from cakdp_ext.config import ConfigError, from_node

T = TypeVar("T")
_GROUP = re.compile(r"GROUP_CFG_(\d+)")


@dataclass(frozen=True)
class BallPoolingConfig:
    """Keys of NAME StackSAModuleMSG, the default; every list has one entry a radius.

    Attributes:
        mlps: widths of the layers behind the source's own width.
        pool_radius: metres.
        nsample: points that a query pools.
        pool_method: must be ``max_pool``.
    """

    mlps: tuple[tuple[int, ...], ...]
    pool_radius: tuple[float, ...]
    nsample: tuple[int, ...]
    pool_method: str = "max_pool"

    def __post_init__(self) -> None:
        if len({len(self.mlps), len(self.pool_radius), len(self.nsample)}) != 1 or not self.mlps:
            raise ValueError("MLPS, POOL_RADIUS and NSAMPLE must have one entry a radius each, and at least one")
        if any(not isinstance(widths, list | tuple) or not widths for widths in self.mlps):
            raise ValueError(f"each entry of MLPS must be a list of widths, got {list(self.mlps)}")
        if min(self.pool_radius) <= 0 or min(self.nsample) < 1:
            raise ValueError("POOL_RADIUS must be positive and NSAMPLE at least 1")
        if self.pool_method != "max_pool":
            raise ValueError(f"POOL_METHOD must be max_pool, got {self.pool_method!r}")


@dataclass(frozen=True)
class VectorGroupConfig:
    """One division of the space around a query (GROUP_CFG_0, GROUP_CFG_1, ...).

    Attributes:
        num_local_voxel: cells along x, y and z.
        max_neighbor_distance: half the width of the cube that is divided, metres.
        post_mlps: widths of the layers behind the cells.
        neighbor_nsample: points around a query that are looked at, -1 for all.
    """

    num_local_voxel: tuple[int, int, int]
    max_neighbor_distance: float
    post_mlps: tuple[int, ...]
    neighbor_nsample: int = -1

    def __post_init__(self) -> None:
        if len(self.num_local_voxel) != 3 or min(self.num_local_voxel) < 1:
            raise ValueError(f"NUM_LOCAL_VOXEL must be three numbers of cells, got {list(self.num_local_voxel)}")
        if self.max_neighbor_distance <= 0:
            raise ValueError(f"MAX_NEIGHBOR_DISTANCE must be positive metres, got {self.max_neighbor_distance}")
        if not self.post_mlps:
            raise ValueError("POST_MLPS must name at least one width")
        if self.neighbor_nsample < 1 and self.neighbor_nsample != -1:
            raise ValueError(f"NEIGHBOR_NSAMPLE must be at least 1, or -1 for all, got {self.neighbor_nsample}")

    @property
    def num_cells(self) -> int:
        """Cells around a query."""
        x, y, z = self.num_local_voxel
        return x * y * z


VECTOR_TYPES = ("local_interpolation", "voxel_avg_pool", "voxel_random_choice")


@dataclass(frozen=True)
class VectorPoolingConfig:
    """Keys of NAME VectorPoolAggregationModuleMSG.

    Attributes:
        num_groups: how many of GROUP_CFG_0, GROUP_CFG_1, ... count.
        local_aggregation_type: what a cell says: ``local_interpolation`` of the three points nearest to its centre,
            ``voxel_avg_pool``, the mean of its points, or ``voxel_random_choice``, its first point.
        num_channels_of_local_aggregation: width of a cell behind its own layer.
        msg_post_mlps: widths of the layers behind all groups.
        groups: the divisions.
        num_reduced_channels: width to which the source's is folded first, None to leave it.
    """

    num_groups: int
    local_aggregation_type: str
    num_channels_of_local_aggregation: int
    msg_post_mlps: tuple[int, ...]
    groups: tuple[VectorGroupConfig, ...]
    num_reduced_channels: int | None = None

    def __post_init__(self) -> None:
        if self.local_aggregation_type not in VECTOR_TYPES:
            raise ValueError(
                f"LOCAL_AGGREGATION_TYPE must be one of {', '.join(VECTOR_TYPES)}, got {self.local_aggregation_type!r}"
            )
        if not self.msg_post_mlps:
            raise ValueError("MSG_POST_MLPS must name at least one width")
        if not 1 <= self.num_groups <= len(self.groups):
            raise ValueError(f"NUM_GROUPS is {self.num_groups}, but {len(self.groups)} GROUP_CFG_0, ... are there")
        if self.local_aggregation_type == "voxel_random_choice":
            for group in self.groups[: self.num_groups]:
                if 0 < group.neighbor_nsample < group.num_cells:
                    raise ValueError(
                        f"NEIGHBOR_NSAMPLE {group.neighbor_nsample} would leave some of the {group.num_cells} cells "
                        "out; with voxel_random_choice give at least as many, or -1"
                    )


AGGREGATIONS: Mapping[str, type] = {
    "StackSAModuleMSG": BallPoolingConfig,
    "VectorPoolAggregationModuleMSG": VectorPoolingConfig,
}


def read_aggregation(node: Mapping[str, Any], own: type[T], where: str) -> tuple[T, Any]:
    """Read a section that says how features are gathered and something of its own.

    Args:
        node: the section, keys in upper case.
        own: dataclass of the keys that do not belong to the gathering.
        where: what errors call the section.

    Returns:
        The section's own settings, and those of the gathering, a value of :data:`AGGREGATIONS`.

    Raises:
        ConfigError: for a section that is none, an unknown NAME or key (the valid ones are listed), a missing key or a
            value that cannot be.
    """
    if not isinstance(node, Mapping):
        raise ConfigError(f"{where} must be a mapping, got {node!r}")
    name = node.get("NAME", "StackSAModuleMSG")
    if name not in AGGREGATIONS:
        raise ConfigError(f"unknown NAME {name!r} of {where}; known names: {', '.join(AGGREGATIONS)}")
    kind, own_keys = AGGREGATIONS[name], _keys_of(own)
    groups = {key: value for key, value in node.items() if kind is VectorPoolingConfig and _GROUP.fullmatch(key)}
    valid = ["NAME", *own_keys, *(key if key != "GROUPS" else "GROUP_CFG_0, ..." for key in _keys_of(kind))]
    unknown = [key for key in node if key not in valid and key not in groups]
    if unknown:
        raise ConfigError(f"unknown key {', '.join(unknown)} in {where}; valid keys: {', '.join(valid)}")
    rest = {key: value for key, value in node.items() if key not in {"NAME", *own_keys, *groups}}
    if kind is VectorPoolingConfig:
        rest["GROUPS"] = tuple(_read_groups(groups, where))
    mine = {key: value for key, value in node.items() if key in own_keys}
    return from_node(own, mine, where), from_node(kind, rest, where)


def _keys_of(cls: type) -> list[str]:
    return [field.name.upper() for field in fields(cls)]


def _read_groups(groups: Mapping[str, Any], where: str) -> list[VectorGroupConfig]:
    wanted = [f"GROUP_CFG_{number}" for number in range(len(groups))]
    if set(wanted) != set(groups):
        raise ConfigError(f"{where} has {', '.join(sorted(groups))}; number them {', '.join(wanted)}")
    return [from_node(VectorGroupConfig, groups[key], f"{key} of {where}") for key in wanted]
