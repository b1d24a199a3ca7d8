"""How is the street laid out, and what is still free on it?"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from cakdp_ext import ops
from cakdp_ext.datasets.scenes.config import StreetConfig
from cakdp_ext.datasets.scenes.shapes import Array

ROAD, PAVEMENT, LAWN, MARKING = 0.16, 0.27, 0.36, 0.75
PARKING_DEPTH = {"none": 0.4, "parallel": 2.3, "perpendicular": 5.2}


@dataclass(frozen=True)
class Side:
    """One side of the street, as distances from the middle of the lane that the sensor drives in.

    Attributes:
        sign: +1 for the left side, -1 for the right.
        parking: ``none``, ``parallel`` or ``perpendicular``.
        lane_edge: metres to the outer edge of the last lane.
        curb: metres to where the pavement starts.
        facade: metres to where the pavement and what is planted behind it end.
        pavement: width of the pavement in metres.
        built: whether houses stand behind, or a hedge.
    """

    sign: int
    parking: str
    lane_edge: float
    curb: float
    facade: float
    pavement: float
    built: bool


@dataclass(frozen=True)
class Street:
    """A straight street with two lanes, perhaps with a crossing one.

    Points are ``(along, lateral)``: metres ahead of the sensor, and to the left of the middle of its lane.

    Attributes:
        yaw: direction of the street in the LiDAR frame, radians.
        offset: metres that the sensor drives left of the middle of its lane.
        lane_width: metres.
        left: the left side; the oncoming lane lies between it and the sensor's.
        right: the right side.
        junction: where the middle of the crossing street is, metres along; None without one.
        junction_width: full width of the crossing street in metres.
    """

    yaw: float
    offset: float
    lane_width: float
    left: Side
    right: Side
    junction: float | None
    junction_width: float = 8.0

    @property
    def sides(self) -> tuple[Side, Side]:
        """Left and right."""
        return self.left, self.right

    def to_lidar(self, along: float, lateral: float) -> tuple[float, float]:
        """Convert a point of the street to x, y of the LiDAR frame."""
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        across = lateral - self.offset
        return float(c * along - s * across), float(s * along + c * across)

    def from_lidar(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Convert x, y of the LiDAR frame (any shape) to points of the street."""
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        return c * x + s * y, c * y - s * x + self.offset

    def in_junction(self, along: float, margin: float = 0.0) -> bool:
        """Tell whether a place lies in the crossing street, widened by a margin in metres."""
        return self.junction is not None and abs(along - self.junction) < self.junction_width / 2 + margin

    def reflectance(self, x: Array, y: Array) -> Array:
        """Give the ground's reflectance at x, y of the LiDAR frame (any shape)."""
        along, lateral = self.from_lidar(x, y)
        beyond_lane = np.where(lateral > 0, lateral - self.left.lane_edge, -lateral - self.right.lane_edge)
        beyond_curb = np.where(lateral > 0, lateral - self.left.curb, -lateral - self.right.curb)
        pavement = np.where(lateral > 0, self.left.pavement, self.right.pavement)
        value = np.select([beyond_curb < 0, beyond_curb < pavement], [ROAD, PAVEMENT], LAWN)
        dashed = (np.abs(lateral - self.lane_width / 2) < 0.07) & (along % 6.0 < 3.0)
        value = np.where(dashed | (np.abs(beyond_lane) < 0.06), MARKING, value)
        if self.junction is None:
            return value
        return np.where(np.abs(along - self.junction) < self.junction_width / 2, ROAD, value)


def sample_street(config: StreetConfig, rng: np.random.Generator) -> Street:
    """Draw a street."""
    lane_width = float(rng.uniform(3.0, 3.6))
    sides = [
        _sample_side(sign, edge, config.buildings, rng) for sign, edge in ((1, 1.5 * lane_width), (-1, lane_width / 2))
    ]
    crossing = bool(rng.random() < config.junction)
    where, width = float(rng.uniform(13.0, 32.0)), float(rng.uniform(6.0, 9.0))
    return Street(
        yaw=float(np.deg2rad(rng.normal(0.0, 3.0))),
        offset=float(rng.normal(0.0, 0.25)),
        lane_width=lane_width,
        left=sides[0],
        right=sides[1],
        junction=where if crossing else None,
        junction_width=width,
    )


def _sample_side(sign: int, lane_edge: float, buildings: bool, rng: np.random.Generator) -> Side:
    parking = str(rng.choice(("none", "parallel", "perpendicular"), p=(0.2, 0.6, 0.2)))
    curb = lane_edge + PARKING_DEPTH[parking]
    pavement = float(rng.uniform(2.2, 4.5))
    facade = curb + pavement + float(rng.uniform(0.3, 5.0))
    return Side(sign, parking, lane_edge, curb, facade, pavement, built=buildings and bool(rng.random() < 0.7))


@dataclass
class Footprints:
    """Rectangles on the ground that are taken; no two of them overlap.

    Attributes:
        taken: ``(x, y, z, dx, dy, dz, heading)`` of each, metres and radians, LiDAR frame; z and dz mean nothing.
    """

    taken: list[tuple[float, ...]] = field(default_factory=list)

    def take(self, x: float, y: float, size: tuple[float, float], heading: float, margin: float = 0.15) -> bool:
        """Take a rectangle if it is free.

        Args:
            x: of its centre, metres.
            y: of its centre, metres.
            size: length and width in metres.
            heading: radians.
            margin: metres by which it is kept off the others.

        Returns:
            Whether it was free.
        """
        wanted = torch.tensor([(x, y, 0, size[0] + 2 * margin, size[1] + 2 * margin, 1, heading)], dtype=torch.float64)
        taken = torch.tensor(self.taken, dtype=torch.float64).view(-1, 7)
        if ops.boxes_overlap_bev(wanted, taken).any():
            return False
        self.taken.append((x, y, 0, *size, 1, heading))
        return True
