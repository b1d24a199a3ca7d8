"""What has moved, and from where is it seen, some tenths of a second later?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from cakdp_ext import ops
from cakdp_ext.datasets.scenes.config import SequenceConfig
from cakdp_ext.datasets.scenes.scene import Ground, Part, Scene, SceneObject
from cakdp_ext.datasets.scenes.shapes import Array, yaw_matrix

SPEEDS = {"Car": (3.0, 10.0), "Van": (3.0, 10.0), "Cyclist": (2.0, 6.0), "Pedestrian": (0.7, 1.8)}
"""KITTI's type -> slowest and fastest, metres a second; whatever else there is stands still."""
EGO_SIZE = (6.0, 2.6)


@dataclass(frozen=True)
class Motion:
    """How everything moves from a scene's first moment on.

    Attributes:
        speeds: ``(M,)`` of the objects along their headings, metres a second.
        ego_speed: of the sensor along +x of the first moment.
        ego_turn: of the sensor, radians a second, counter-clockwise.
    """

    speeds: Array
    ego_speed: float
    ego_turn: float

    def ego_pose(self, ground: Ground, seconds: float) -> Array:
        """Give the ``(4, 4)`` transform from the sensor's frame to that of the first moment; it follows the ground."""
        way = self.ego_speed * seconds
        pose = np.eye(4)
        pose[:3, :3] = yaw_matrix(self.ego_turn * seconds)
        pose[:3, 3] = (way, 0.0, -ground.normal[0] / ground.normal[2] * way)
        return pose

    def scene_at(self, scene: Scene, seconds: float) -> Scene:
        """Give the scene in the sensor's frame after some seconds."""
        ahead = self.ego_pose(scene.ground, seconds)
        back = np.asarray(np.linalg.inv(ahead), dtype=np.float64)
        moved = [
            _advance(item, speed * seconds, scene.ground)
            for item, speed in zip(scene.objects, self.speeds, strict=True)
        ]
        return Scene(
            _ground_from(scene.ground, ahead),
            _reflectance_from(scene, ahead),
            tuple(_object_from(item, back) for item in moved),
            _parts_from(scene.clutter, back),
        )


def sample_motion(scene: Scene, config: SequenceConfig, rng: np.random.Generator) -> Motion:
    """Draw who moves and how fast; nobody's way crosses another's, or the sensor's.

    Args:
        scene: the first moment.
        config: how many and how fast.
        rng: the only source of chance.
    """
    duration = 0.1 * (config.frames - 1)
    ego_speed = float(rng.uniform(*config.ego_speed))
    ego_turn = float(np.deg2rad(rng.uniform(-config.max_turn, config.max_turn)))
    way = ego_speed * duration
    ego = np.array((way / 2, 0.0, 0.0, EGO_SIZE[0] + way, EGO_SIZE[1] + way * abs(ego_turn) * duration, 1.0, 0.0))
    ways = np.array([ego, *(item.box for item in scene.objects)])
    speeds = np.zeros(len(scene.objects))
    for index, item in enumerate(scene.objects):
        speed = float(rng.uniform(*SPEEDS.get(item.name, (0.0, 0.0))))
        if rng.random() >= config.moving or speed == 0.0:
            continue
        wanted = _swept(item.box, speed * duration)
        others = torch.from_numpy(np.delete(ways, index + 1, axis=0))
        if not ops.boxes_overlap_bev(torch.from_numpy(wanted[None]), others).any():
            ways[index + 1], speeds[index] = wanted, speed
    return Motion(speeds, ego_speed, ego_turn)


def _swept(box: Array, way: float) -> Array:
    """Give the box that holds a box ``(7,)`` all along its way ahead."""
    swept = box.copy()
    swept[:2] += way / 2 * np.array((np.cos(box[6]), np.sin(box[6])))
    swept[3] += way
    return swept


def _advance(item: SceneObject, way: float, ground: Ground) -> SceneObject:
    x, y = way * np.cos(item.box[6]), way * np.sin(item.box[6])
    step = np.array((x, y, ground.elevation_at(x, y) - ground.elevation_at(0.0, 0.0)))
    box = item.box.copy()
    box[:3] += step
    parts = tuple(replace(part, shape=part.shape.placed(np.eye(3), step)) for part in item.parts)
    return SceneObject(item.name, box, parts)


def _object_from(item: SceneObject, back: Array) -> SceneObject:
    box = item.box.copy()
    box[:3] = back[:3, :3] @ box[:3] + back[:3, 3]
    box[6] += np.arctan2(back[1, 0], back[0, 0])
    return SceneObject(item.name, box, _parts_from(item.parts, back))


def _parts_from(parts: tuple[Part, ...], back: Array) -> tuple[Part, ...]:
    return tuple(replace(part, shape=part.shape.placed(back[:3, :3], back[:3, 3])) for part in parts)


def _ground_from(ground: Ground, ahead: Array) -> Ground:
    """Give the ground in the sensor's frame; its height over a plane that it follows stays what it was."""
    waves = ground.waves.copy()
    waves[:, 3] += waves[:, 1:3] @ ahead[:2, 3]
    waves[:, 1:3] = waves[:, 1:3] @ ahead[:2, :2]
    return Ground(ahead[:3, :3].T @ ground.normal, ground.height, waves)


def _reflectance_from(scene: Scene, ahead: Array) -> Callable[[Array, Array], Array]:
    def reflectance(x: Array, y: Array) -> Array:
        (a, b), (c, d) = ahead[:2, :2]
        return scene.ground_reflectance(a * x + b * y + ahead[0, 3], c * x + d * y + ahead[1, 3])

    return reflectance
