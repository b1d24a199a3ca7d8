"""What would KITTI's annotators have written?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cakdp_ext.datasets.scenes.camera import Camera
from cakdp_ext.datasets.scenes.config import SceneConfig
from cakdp_ext.datasets.scenes.lidar import RangeImage, Returns
from cakdp_ext.datasets.scenes.scene import Scene
from cakdp_ext.datasets.scenes.shapes import Array

DONT_CARE = "DontCare"
OCCLUSION_SHARES = (0.75, 0.35)
"""Above the first visible share an object counts as fully visible (0), above the second as partly occluded (1)."""


@dataclass(frozen=True)
class Label:
    """One line of a KITTI label file; the defaults are those of a DontCare region.

    Attributes:
        name: KITTI's type.
        bbox: ``(4,)`` left, top, right, bottom in pixels.
        truncated: share of the 2D box outside the image.
        occluded: 0 visible, 1 partly, 2 largely occluded.
        alpha: observation angle in radians.
        size: height, width, length in metres.
        location: middle of the lower face in the rectified camera frame, metres.
        rotation_y: radians about the camera's y axis.
    """

    name: str
    bbox: tuple[float, float, float, float]
    truncated: float = -1
    occluded: int = -1
    alpha: float = -10
    size: tuple[float, float, float] = (-1, -1, -1)
    location: tuple[float, float, float] = (-1000, -1000, -1000)
    rotation_y: float = -10

    @property
    def line(self) -> str:
        """Its text in KITTI's order."""
        box = " ".join(f"{value:.2f}" for value in self.bbox)
        if self.name == DONT_CARE:
            return f"{DONT_CARE} -1 -1 -10 {box} -1 -1 -1 -1000 -1000 -1000 -10"
        rest = " ".join(f"{value:.3f}" for value in (*self.size, *self.location, self.rotation_y))
        return f"{self.name} {self.truncated:.2f} {self.occluded:d} {self.alpha:.3f} {box} {rest}"


def occlusion_level(visible: int, alone: int) -> int:
    """Give KITTI's occlusion level from the shots that meet an object with and without the rest of the scene."""
    share = visible / max(alone, 1)
    return sum(share <= limit for limit in OCCLUSION_SHARES)


def label_objects(
    scene: Scene, image: RangeImage, returns: Returns, camera: Camera, config: SceneConfig
) -> tuple[Label, ...]:
    """Label what the sensor and the camera see.

    Args:
        scene: the objects.
        image: how many shots met each of them.
        returns: the point cloud.
        camera: the rig.
        config: ``min_points``, ``min_visible`` and ``label_distance``.

    Returns:
        Objects first, then DontCare regions: what has too few points, is nearly hidden or too far away. What gives no
        point inside the image is left out. KITTI's readers want at least one line, so a frame with nothing else gets
        a DontCare region around the vanishing point, where objects would be too far to be seen.
    """
    owner = returns.owner[camera.sees(returns.points[:, :3].astype(float))]
    num_points = np.bincount(owner[owner >= 0], minlength=len(scene.objects))
    labels, ignored = [], []
    for index, item in enumerate(scene.objects):
        bbox = _clipped(camera.project_box(item.box), camera) if num_points[index] else None
        if bbox is None:
            continue
        visible, alone = int(image.rays_visible[index]), int(image.rays_alone[index])
        hardly_seen = num_points[index] < config.min_points or visible < config.min_visible * alone
        if hardly_seen or np.hypot(item.box[0], item.box[1]) > config.label_distance:
            ignored.append(Label(DONT_CARE, bbox[0]))
        else:
            labels.append(_label(item.name, item.box, bbox, occlusion_level(visible, alone), camera))
    if not labels and not ignored:
        (u, v), half = camera.principal, 12.0
        ignored.append(Label(DONT_CARE, (u - 2 * half, v - half, u + 2 * half, v + half)))
    return (*labels, *ignored)


def _clipped(unclipped: Array | None, camera: Camera) -> tuple[tuple[float, float, float, float], float] | None:
    """Clip a projected box to the image; give it with the share that was cut off, None when nothing is left."""
    if unclipped is None:
        return None
    left, top, right, bottom = unclipped.tolist()
    area = (right - left) * (bottom - top)
    left, right = max(left, 0.0), min(right, camera.width - 1.0)
    top, bottom = max(top, 0.0), min(bottom, camera.height - 1.0)
    if right - left < 1.0 or bottom - top < 1.0:
        return None
    return (left, top, right, bottom), 1.0 - (right - left) * (bottom - top) / area


def _label(
    name: str, box: Array, bbox: tuple[tuple[float, float, float, float], float], occluded: int, camera: Camera
) -> Label:
    length, width, height, heading = box[3:].tolist()
    x, y, z = camera.to_rect(box[:3] - (0.0, 0.0, height / 2)).tolist()
    rotation_y = _wrapped(-heading - np.pi / 2)
    alpha = _wrapped(rotation_y - float(np.arctan2(x, z)))
    return Label(name, bbox[0], bbox[1], occluded, alpha, (height, width, length), (x, y, z), rotation_y)


def _wrapped(angle: float) -> float:
    """Bring an angle into (-pi, pi), by a margin that keeps it there when it is written with three decimals."""
    return min(max(float((angle + np.pi) % (2 * np.pi) - np.pi), -3.141), 3.141)
