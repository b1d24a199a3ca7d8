"""What stands where in frame i?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from cakdp_ext.datasets.scenes.clutter import LEAVES, sample_item
from cakdp_ext.datasets.scenes.config import SceneConfig
from cakdp_ext.datasets.scenes.scene import Ground, Part, Scene, SceneObject, placed_parts
from cakdp_ext.datasets.scenes.shapes import cuboid
from cakdp_ext.datasets.scenes.street import PARKING_DEPTH, Footprints, Side, Street, sample_street
from cakdp_ext.datasets.scenes.traffic import MODELS

Pose = tuple[float, float, float]
"""``(along, lateral, heading)`` on the street, metres and radians, heading counter-clockwise from its direction."""
ATTEMPTS = 40
NEAREST = 4.5
HALF_VIEW = np.deg2rad(43.0)
WALL = 0.35


@dataclass
class _Builder:
    """A scene in the making."""

    config: SceneConfig
    rng: np.random.Generator
    street: Street
    ground: Ground
    around: bool = False
    footprints: Footprints = field(default_factory=Footprints)
    objects: list[SceneObject] = field(default_factory=list)
    clutter: list[Part] = field(default_factory=list)
    walkers: list[Pose] = field(default_factory=list)


def sample_scene(config: SceneConfig, rng: np.random.Generator, *, around: bool = False) -> Scene:
    """Draw a street with its traffic and its clutter.

    Args:
        config: how much of everything.
        rng: the only source of chance.
        around: place traffic on all sides, not only where a camera that looks ahead would see it.

    Returns:
        The scene in the LiDAR frame; no two objects overlap, nor does an object overlap with clutter or walls.
    """
    street = sample_street(config.street, rng)
    builder = _Builder(config, rng, street, _sample_ground(config, rng), around)
    builder.footprints.take(-0.5, 0.0, (4.4, 2.0), 0.0)
    if config.street.buildings:
        for side in street.sides:
            _line_with_walls(builder, side)
    _place_traffic(builder)
    _place_clutter(builder)
    return Scene(builder.ground, street.reflectance, tuple(builder.objects), tuple(builder.clutter))


def _sample_ground(config: SceneConfig, rng: np.random.Generator) -> Ground:
    tilt = np.deg2rad(config.street.max_tilt) * rng.standard_normal(2).clip(-2, 2) / 2
    normal = np.array((np.tan(tilt[0]), np.tan(tilt[1]), 1.0))
    count = 4
    waves = np.stack(
        (
            np.full(count, config.street.roughness / np.sqrt(count)),
            rng.uniform(-2.0, 2.0, count),
            rng.uniform(-2.0, 2.0, count),
            rng.uniform(0.0, 2 * np.pi, count),
        ),
        axis=1,
    )
    normal /= np.linalg.norm(normal)
    return Ground(normal, config.lidar.height * float(normal[2]), waves)


def _line_with_walls(builder: _Builder, side: Side) -> None:
    rng, street = builder.rng, builder.street
    scan_behind = builder.config.lidar.field_of_view > 180
    along = -60.0 if scan_behind else -6.0
    while along < builder.config.lidar.max_range:
        length = float(rng.uniform(5.0, 16.0))
        deep, high = (8.0, float(rng.uniform(3.5, 10.0))) if side.built else (1.0, float(rng.uniform(1.0, 2.4)))
        setback = float(rng.uniform(0.0, 1.2))
        middle, lateral = along + length / 2, side.sign * (side.facade + setback + deep / 2)
        if not street.in_junction(middle, margin=2.0 + length / 2):
            _place_wall(builder, (middle, lateral, 0.0), (length, deep, high), leafy=not side.built)
        along += length + float(rng.choice((0.0, rng.uniform(1.0, 5.0))))


def _place_wall(builder: _Builder, pose: Pose, size: tuple[float, float, float], leafy: bool) -> None:
    x, y = builder.street.to_lidar(pose[0], pose[1])
    if not builder.footprints.take(x, y, size[:2], builder.street.yaw, margin=-0.01):
        return
    bottom = builder.ground.elevation_at(x, y) - 0.3
    solid = cuboid((0.0, 0.0, size[2] / 2), size)
    tone = float(WALL * builder.rng.uniform(0.6, 1.4))
    part = Part(solid, LEAVES, free_path=0.12) if leafy else Part(solid, tone)
    builder.clutter += placed_parts((part,), np.array((x, y, bottom)), builder.street.yaw)


def _place_traffic(builder: _Builder) -> None:
    traffic = builder.config.traffic
    wanted: tuple[tuple[str, tuple[int, int], Callable[[_Builder], Pose]], ...] = (
        ("Car", traffic.cars, _car_pose),
        ("Van", traffic.vans, _car_pose),
        ("Misc", traffic.misc, _parked_pose),
        ("Cyclist", traffic.cyclists, _cyclist_pose),
        ("Pedestrian", traffic.pedestrians, _pedestrian_pose),
    )
    for name, (fewest, most), propose in wanted:
        for _ in range(int(builder.rng.integers(fewest, most + 1))):
            _place_object(builder, name, propose, (NEAREST, traffic.reach))
    for _ in range(int(builder.rng.integers(traffic.far_cars[0], traffic.far_cars[1] + 1))):
        _place_object(builder, "Car", _far_pose, (traffic.reach, builder.config.lidar.max_range))


def _place_object(
    builder: _Builder, name: str, propose: Callable[[_Builder], Pose], distances: tuple[float, float]
) -> None:
    """Try poses until one is in view and free; give up after ``ATTEMPTS``."""
    model = MODELS[name]
    length, width, height = model.sample_size(builder.rng)
    for _ in range(ATTEMPTS):
        along, lateral, turn = propose(builder)
        x, y = builder.street.to_lidar(along, lateral)
        in_view = builder.around or abs(np.arctan2(y, x)) < HALF_VIEW
        in_view = in_view and distances[0] < np.hypot(x, y) < distances[1]
        heading = float((turn + builder.street.yaw + np.pi) % (2 * np.pi) - np.pi)
        if not in_view or not builder.footprints.take(x, y, (length, width), heading):
            continue
        bottom = builder.ground.elevation_at(x, y)
        parts = model.build((length, width, height), builder.rng)
        box = np.array((x, y, bottom + height / 2, length, width, height, heading))
        builder.objects.append(SceneObject(name, box, placed_parts(parts, np.array((x, y, bottom)), heading)))
        if name == "Pedestrian":
            builder.walkers.append((along, lateral, turn))
        return


def _any_side(builder: _Builder) -> Side:
    return builder.street.sides[int(builder.rng.integers(2))]


def _direction(side: Side) -> float:
    """Give the heading of traffic on a side: with the sensor on the right, against it on the left."""
    return 0.0 if side.sign < 0 else np.pi


def _along(builder: _Builder) -> float:
    reach = builder.config.traffic.reach
    return float(builder.rng.uniform(-reach if builder.around else 2.0, reach))


def _parked_pose(builder: _Builder) -> Pose:
    rng, side, along = builder.rng, _any_side(builder), _along(builder)
    depth = PARKING_DEPTH[side.parking]
    turned = np.pi * float(rng.random() < 0.2) + float(np.deg2rad(rng.normal(0.0, 2.5)))
    if side.parking == "perpendicular":
        middle = side.sign * (side.lane_edge + depth / 2 + float(rng.normal(0.0, 0.15)))
        return along, middle, np.pi / 2 + turned + np.pi * float(rng.random() < 0.4)
    middle = side.sign * (side.lane_edge + max(depth, 2.2) / 2 + 0.05 + float(rng.normal(0.0, 0.1)))
    return along, middle, _direction(side) + turned


def _driving_pose(builder: _Builder) -> Pose:
    rng, along = builder.rng, _along(builder)
    oncoming = bool(rng.random() < 0.5)
    lateral = float(oncoming) * builder.street.lane_width + float(rng.normal(0.0, 0.25))
    return along, lateral, np.pi * oncoming + float(np.deg2rad(rng.normal(0.0, 2.0)))


def _crossing_pose(builder: _Builder) -> Pose:
    """Give a vehicle in the crossing street or turning out of it."""
    rng, street = builder.rng, builder.street
    if street.junction is None:
        return _driving_pose(builder)
    leftward = bool(rng.random() < 0.5)
    along = street.junction + (1.0 if leftward else -1.0) * street.junction_width / 4 + float(rng.normal(0.0, 0.3))
    turn = np.pi / 2 if leftward else -np.pi / 2
    turning = float(rng.uniform(-0.9, 0.9)) if rng.random() < 0.3 else float(np.deg2rad(rng.normal(0.0, 3.0)))
    return along, float(rng.uniform(-16.0, 17.0)), turn + turning


def _car_pose(builder: _Builder) -> Pose:
    pose = (_parked_pose, _driving_pose, _crossing_pose)[int(builder.rng.choice(3, p=(0.6, 0.25, 0.15)))]
    return pose(builder)


def _far_pose(builder: _Builder) -> Pose:
    _, lateral, turn = _parked_pose(builder) if builder.rng.random() < 0.5 else _driving_pose(builder)
    along = float(builder.rng.uniform(builder.config.traffic.reach, builder.config.lidar.max_range - 3.0))
    return -along if builder.around and builder.rng.random() < 0.5 else along, lateral, turn


def _pavement_pose(builder: _Builder, spread: float) -> Pose:
    rng, side = builder.rng, _any_side(builder)
    lateral = side.sign * (side.curb + float(rng.uniform(0.3, side.pavement)))
    turn = np.pi * float(rng.random() < 0.5) + float(np.deg2rad(rng.normal(0.0, spread)))
    return _along(builder), lateral, turn


def _pedestrian_pose(builder: _Builder) -> Pose:
    rng, street = builder.rng, builder.street
    kind = rng.random()
    if kind < 0.3 and builder.walkers:
        along, lateral, turn = builder.walkers[int(rng.integers(len(builder.walkers)))]
        shift = rng.normal(0.0, 0.9, size=2)
        return along + float(shift[0]), lateral + float(shift[1]), turn + float(np.deg2rad(rng.normal(0.0, 15.0)))
    if kind < 0.75:
        return _pavement_pose(builder, spread=15.0)
    lateral = float(rng.uniform(-street.right.facade, street.left.facade))
    if kind < 0.9:
        turn = float(rng.choice((-1.0, 1.0))) * np.pi / 2 + float(np.deg2rad(rng.normal(0.0, 15.0)))
        return _along(builder), lateral, turn
    return _along(builder), lateral, float(rng.uniform(-np.pi, np.pi))


def _cyclist_pose(builder: _Builder) -> Pose:
    rng, side = builder.rng, _any_side(builder)
    kind = rng.random()
    if kind < 0.25:
        return _pavement_pose(builder, spread=6.0)
    if kind < 0.45:
        return _crossing_pose(builder)
    lateral = side.sign * (side.lane_edge - float(rng.uniform(0.2, 1.2)))
    return _along(builder), lateral, _direction(side) + float(np.deg2rad(rng.normal(0.0, 6.0)))


def _place_clutter(builder: _Builder) -> None:
    """Scatter poles, bushes, bins and their like between the curbs and the walls."""
    rng, street = builder.rng, builder.street
    far = builder.config.traffic.reach + 15.0
    near = -far if builder.config.lidar.field_of_view > 180 else 1.0
    for _ in range(int(rng.poisson(0.9 * builder.config.street.clutter * (far - near)))):
        side, along = _any_side(builder), float(rng.uniform(near, far))
        parts, size = sample_item(rng)
        lateral = side.sign * float(rng.uniform(side.curb + 0.2, side.facade + 0.8))
        if street.in_junction(along, margin=0.5):
            continue
        x, y = street.to_lidar(along, lateral)
        heading = float(street.yaw + rng.choice((0.0, np.pi / 2)) + rng.normal(0.0, 0.15))
        if builder.footprints.take(x, y, size, heading, margin=0.1):
            position = np.array((x, y, builder.ground.elevation_at(x, y)))
            builder.clutter += placed_parts(parts, position, heading)
