"""What else stands at a street, and passes for a pedestrian or a cyclist when it is far?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cakdp_ext.datasets.scenes.scene import Part
from cakdp_ext.datasets.scenes.shapes import column, cuboid, ellipsoid
from cakdp_ext.datasets.scenes.traffic import build_cabinet, build_parked_bicycle

LEAVES, BARK, STEEL, SIGN = 0.3, 0.25, 0.4, 0.9
Item = tuple[tuple[Part, ...], tuple[float, float]]
"""Parts in their own frame and the length and width in metres of the ground they take."""


def _pole(rng: np.random.Generator) -> Item:
    radius = float(rng.uniform(0.05, 0.16))
    return (Part(column(0, 0, radius, 0, float(rng.uniform(2.5, 7.0))), STEEL),), (2 * radius, 2 * radius)


def _bollard(rng: np.random.Generator) -> Item:
    radius = float(rng.uniform(0.08, 0.2))
    return (Part(column(0, 0, radius, 0, float(rng.uniform(0.7, 1.3))), STEEL),), (2 * radius, 2 * radius)


def _sign(rng: np.random.Generator) -> Item:
    size = float(rng.uniform(0.3, 0.6))
    bottom = float(rng.uniform(1.1, 2.2))
    plate = cuboid((0.05, 0, bottom + size / 2), (0.04, size, size))
    return (Part(column(0, 0, 0.04, 0, bottom + size), STEEL), Part(plate, SIGN)), (0.2, size)


def _post(rng: np.random.Generator) -> Item:
    """Build a parking meter or letter box: a thick trunk with a head, of a person's height and width."""
    height, width = float(rng.uniform(1.4, 1.9)), float(rng.uniform(0.3, 0.5))
    trunk = column(0, 0, float(rng.uniform(0.07, 0.15)), 0, height - 0.4)
    head = cuboid((0, 0, height - 0.35), (float(rng.uniform(0.2, 0.4)), width, 0.7))
    paint = float(rng.uniform(0.1, 0.6))
    return (Part(trunk, paint), Part(head, paint)), (0.4, width)


def _bin(rng: np.random.Generator) -> Item:
    paint, height = float(rng.uniform(0.08, 0.5)), float(rng.uniform(0.8, 1.4))
    if rng.random() < 0.5:
        radius = float(rng.uniform(0.2, 0.35))
        return (Part(column(0, 0, radius, 0, height), paint),), (2 * radius, 2 * radius)
    length, width = float(rng.uniform(0.45, 0.8)), float(rng.uniform(0.45, 1.3))
    return build_cabinet((length, width, height), paint), (length, width)


def _cabinet(rng: np.random.Generator) -> Item:
    length, width = float(rng.uniform(0.3, 0.5)), float(rng.uniform(0.6, 1.4))
    return build_cabinet((length, width, float(rng.uniform(0.9, 1.7))), float(rng.uniform(0.2, 0.6))), (length, width)


def _bush(rng: np.random.Generator) -> Item:
    radius, across = rng.uniform(0.25, 0.9, size=2).tolist()
    half_height = float(rng.uniform(0.35, 0.95))
    crown = ellipsoid((0, 0, half_height * 0.95), (radius, across, half_height))
    return (Part(crown, LEAVES, free_path=float(rng.uniform(0.06, 0.3))),), (2 * radius, 2 * across)


def _tree(rng: np.random.Generator) -> Item:
    radius, bottom = float(rng.uniform(0.1, 0.22)), float(rng.uniform(2.6, 3.3))
    spread, half_height = float(rng.uniform(0.9, 2.0)), float(rng.uniform(1.0, 2.2))
    crown = ellipsoid((0, 0, bottom + half_height), (spread, spread, half_height))
    trunk = column(0, 0, radius, 0, bottom + half_height)
    return (Part(trunk, BARK), Part(crown, LEAVES, free_path=0.5)), (2 * radius, 2 * radius)


def _sapling(rng: np.random.Generator) -> Item:
    """Build a young tree: thin trunk, a crown as wide as shoulders, not taller than a rider."""
    height, radius = float(rng.uniform(1.5, 2.3)), float(rng.uniform(0.2, 0.45))
    crown = ellipsoid((0, 0, height - 0.45), (radius, radius, 0.5))
    return (Part(column(0, 0, 0.05, 0, height - 0.5), BARK), Part(crown, LEAVES, free_path=0.15)), (
        2 * radius,
        2 * radius,
    )


def _bicycle(rng: np.random.Generator) -> Item:
    return build_parked_bicycle(rng), (1.85, 0.62)


def _overgrown_bicycle(rng: np.random.Generator) -> Item:
    """Build a parked bicycle in front of a bush or beside a post: the outline of a rider without one."""
    height = float(rng.uniform(1.4, 1.9))
    crown = ellipsoid((0, 0.05, 0.72 * height), (0.25, 0.2, 0.28 * height))
    return (*build_parked_bicycle(rng), Part(crown, LEAVES, free_path=0.08)), (1.85, 0.62)


KINDS: tuple[tuple[float, Callable[[np.random.Generator], Item]], ...] = (
    (0.16, _pole),
    (0.11, _bollard),
    (0.09, _sign),
    (0.11, _post),
    (0.13, _bin),
    (0.05, _cabinet),
    (0.12, _bush),
    (0.07, _tree),
    (0.06, _sapling),
    (0.07, _bicycle),
    (0.03, _overgrown_bicycle),
)
"""Share of each kind and its builder."""


def sample_item(rng: np.random.Generator) -> Item:
    """Draw a kind and build it."""
    shares = np.array([share for share, _ in KINDS])
    index = int(rng.choice(len(KINDS), p=shares / shares.sum()))
    return KINDS[index][1](rng)
