"""What do cars, pedestrians and cyclists look like to a laser?

Every builder gives parts in the object's own frame: x forward, y left, z up, the middle of its foot at the origin. They
fill the box of the given size and do not leave it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cakdp_ext.datasets.scenes.scene import Part
from cakdp_ext.datasets.scenes.shapes import Array, cuboid, ellipsoid, extrusion, frustum, limb

TYRE, GLASS, SKIN, METAL = 0.06, 0.08, 0.35, 0.3
Size = tuple[float, float, float]


@dataclass(frozen=True)
class Model:
    """A kind of object.

    Attributes:
        mean: mean length, width, height in metres.
        spread: standard deviations of the three; sizes stay within two of them.
        build: gives the parts for a size and a random generator.
    """

    mean: Size
    spread: Size
    build: Callable[[Size, np.random.Generator], tuple[Part, ...]]

    def sample_size(self, rng: np.random.Generator) -> Size:
        """Draw length, width and height in metres."""
        length, width, height = np.array(self.mean) + np.array(self.spread) * rng.standard_normal(3).clip(-2, 2)
        return float(length), float(width), float(height)


def _wheels(size: Size, radius: float, positions: tuple[float, ...]) -> tuple[Part, ...]:
    across = size[1] / 2 - 0.11
    return tuple(
        Part(ellipsoid((x * size[0], side * across, radius), (radius, 0.1, radius)), TYRE)
        for x in positions
        for side in (-1, 1)
    )


def _scaled(profile: list[tuple[float, float]], size: Size) -> Array:
    return np.array(profile) * (size[0], size[2])


def build_car(size: Size, rng: np.random.Generator) -> tuple[Part, ...]:
    """Build a saloon, a hatchback or an estate: low bonnet in front, cabin with sloped windows behind."""
    length, width, height = size
    paint = float(rng.uniform(0.1, 0.75))
    deck, roof_rear, roof_front = ((-0.40, -0.24, 0.06), (-0.47, -0.36, 0.06), (-0.485, -0.44, 0.10))[rng.integers(3)]
    belt, cowl = 0.58 * height, 0.24 * length
    side = _scaled(
        [(-0.48, 0.12), (0.48, 0.12), (0.5, 0.3), (0.47, 0.47), (0.24, 0.58), (-0.47, 0.58), (-0.5, 0.35)], size
    )
    low, high = (deck * length, cowl, 0.46 * width), (roof_rear * length, roof_front * length, 0.36 * width)
    roof = (high[0] + 0.01, high[1] - 0.01, 0.34 * width)
    return (
        Part(extrusion(side, width), paint),
        Part(frustum(low, belt, high, 0.95 * height), GLASS, absorption=0.6),
        Part(frustum(high, 0.95 * height, roof, height), paint),
        *_wheels(size, 0.31, (-0.32, 0.33)),
    )


def build_van(size: Size, rng: np.random.Generator) -> tuple[Part, ...]:
    """Build a delivery van: one tall body with a short bonnet and a steep windscreen."""
    length, width, height = size
    paint = float(rng.uniform(0.2, 0.8))
    hull = [(-0.49, 0.1), (0.48, 0.1), (0.5, 0.25), (0.48, 0.45), (0.36, 0.8), (0.26, 1.0), (-0.48, 1.0), (-0.5, 0.9)]
    window = [(0.478, 0.47), (0.485, 0.47), (0.37, 0.8), (0.36, 0.8)]
    return (
        Part(extrusion(_scaled(hull, size), width), paint),
        Part(extrusion(_scaled(window, size), 0.86 * width), GLASS, absorption=0.6),
        *_wheels(size, 0.34, (-0.31, 0.33)),
    )


def build_trailer(size: Size, rng: np.random.Generator) -> tuple[Part, ...]:
    """Build a single-axle trailer: a box with a drawbar in front."""
    length, width, height = size
    box = frustum(
        (-0.5 * length, 0.3 * length, 0.42 * width), 0.45, (-0.5 * length, 0.3 * length, 0.42 * width), height
    )
    bar = limb((0.25 * length, 0, 0.5), (0.5 * length, 0, 0.45), 0.06)
    return (Part(box, float(rng.uniform(0.2, 0.6))), Part(bar, METAL), *_wheels(size, 0.28, (-0.1,)))


def build_pedestrian(size: Size, rng: np.random.Generator) -> tuple[Part, ...]:
    """Build a walking or standing person: head, trunk, legs apart by a stride and arms swinging against them."""
    length, width, height = size
    clothes, trousers = rng.uniform(0.08, 0.65, size=2).tolist()
    lead = float(rng.choice((-1.0, 1.0)))
    swing, shoulder = 0.32 * length, width / 2 - 0.06
    parts = [
        Part(ellipsoid((0, 0, height - 0.125), (0.1, 0.085, 0.125)), SKIN),
        Part(limb((0, 0, 0.42 * height), (0.02, 0, 0.9 * height), 0.14, 0.62 * shoulder + 0.06), clothes),
    ]
    for side in (-1.0, 1.0):
        foot, hand = side * lead * (length / 2), -side * lead * swing
        hip, arm = side * 0.09, side * shoulder
        parts.append(Part(limb((0, hip, 0.52 * height), (foot * 0.9, hip, 0.01), 0.075), trousers))
        parts.append(Part(ellipsoid((foot * 0.75, hip, 0.05), (length / 8, 0.05, 0.05)), TYRE))
        parts.append(Part(limb((0, arm, 0.83 * height), (hand, arm, 0.47 * height), 0.055), clothes))
    if rng.random() < 0.3:
        parts.append(Part(ellipsoid((-min(0.17, length / 2 - 0.1), 0, 0.7 * height), (0.1, 0.13, 0.2)), clothes * 0.6))
    return tuple(parts)


def build_bicycle(size: Size, rng: np.random.Generator) -> tuple[Part, ...]:
    """Build a bicycle: two spoked wheels, frame tubes and a handlebar; ``size[2]`` is the rider's height."""
    length, width, _ = size
    paint = float(rng.uniform(0.15, 0.5))
    radius = 0.335
    hub, saddle, bar = length / 2 - radius, (-0.14 * length, 0.0, 0.93), (0.27 * length, 0.0, 0.98)
    pedals = (0.0, 0.0, 0.3)
    tubes = [((-hub, 0, radius), saddle), (pedals, saddle), (pedals, bar), (saddle, bar), ((hub, 0, radius), bar)]
    wheels = [Part(ellipsoid((x, 0, radius), (radius, 0.035, radius)), 0.2, free_path=0.06) for x in (-hub, hub)]
    grips = limb((bar[0], -width / 2, bar[2]), (bar[0], width / 2, bar[2]), 0.035)
    return (*wheels, *(Part(limb(a, b, 0.035), paint) for a, b in tubes), Part(grips, paint))


def build_cyclist(size: Size, rng: np.random.Generator) -> tuple[Part, ...]:
    """Build a bicycle with its rider, who leans towards the handlebar."""
    length, width, height = size
    clothes, trousers = rng.uniform(0.08, 0.65, size=2).tolist()
    hip, neck = (-0.13 * length, 0.0, 0.53 * height), (0.07 * length, 0.0, 0.87 * height)
    parts = [
        Part(ellipsoid((neck[0] + 0.08, 0, height - 0.13), (0.11, 0.09, 0.13)), SKIN),
        Part(limb(hip, neck, 0.13, 0.34 * width), clothes),
    ]
    for side, pedal in ((-1.0, 0.42), (1.0, 0.16)):
        y_leg, y_arm = side * 0.11, side * 0.34 * width
        knee, foot = (0.13 * length, y_leg, pedal + 0.38), (0.03 * length, y_leg, pedal)
        parts.append(Part(limb((hip[0], y_leg, hip[2]), knee, 0.075), trousers))
        parts.append(Part(limb(knee, foot, 0.06), trousers))
        parts.append(Part(limb((neck[0], y_arm, 0.82 * height), (0.27 * length, y_arm, 0.98), 0.05), clothes))
    return (*build_bicycle(size, rng), *parts)


MODELS: dict[str, Model] = {
    "Car": Model((3.9, 1.6, 1.56), (0.4, 0.1, 0.12), build_car),
    "Pedestrian": Model((0.8, 0.6, 1.73), (0.15, 0.06, 0.1), build_pedestrian),
    "Cyclist": Model((1.76, 0.6, 1.73), (0.1, 0.05, 0.08), build_cyclist),
    "Van": Model((5.0, 1.9, 2.2), (0.4, 0.1, 0.15), build_van),
    "Misc": Model((2.6, 1.5, 1.5), (0.3, 0.15, 0.3), build_trailer),
}
"""KITTI's type -> what it looks like; the mean sizes of the first three are those of KITTI."""


def build_parked_bicycle(rng: np.random.Generator) -> tuple[Part, ...]:
    """Build a bicycle that nobody rides: KITTI does not label it."""
    return build_bicycle((float(rng.uniform(1.6, 1.85)), float(rng.uniform(0.45, 0.62)), 1.1), rng)


def build_cabinet(size: Size, reflectance: float) -> tuple[Part, ...]:
    """Build a box that stands on the ground."""
    return (Part(cuboid((0.0, 0.0, size[2] / 2), size), reflectance),)
