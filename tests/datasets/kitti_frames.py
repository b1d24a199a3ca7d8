"""Writes a tiny data set in KITTI's layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = {"Car": (3.9, 1.6, 1.5), "Pedestrian": (0.8, 0.6, 1.8), "Cyclist": (1.8, 0.6, 1.7), "Van": (5.0, 1.9, 2.2)}
IMAGE_SHAPE = (375, 1242)
ROAD = 1.7
"""How far the LiDAR stands above the road, metres."""
P2 = np.array(((720.0, 0, 610, 45), (0, 720, 173, 0.2), (0, 0, 1, 0.003)))
R0 = np.array(((1.0, 0, 0), (0, np.cos(0.01), -np.sin(0.01)), (0, np.sin(0.01), np.cos(0.01))))
TR = np.array(((0.0, -1, 0, -0.004), (0, 0, -1, -0.076), (1, 0, 0, -0.272)))
TO_CAMERA = np.eye(4)
TO_CAMERA[:3] = R0 @ TR

Objects = Sequence[tuple[str, Sequence[float]]]


def box_points(box, unit):
    """Place points given in units of the box's size, ``(N, 3)`` in [-0.5, 0.5], into the LiDAR frame."""
    x, y, z, dx, dy, dz, heading = box
    along, across, up = (np.asarray(unit) * (dx, dy, dz)).T
    cos, sin = np.cos(heading), np.sin(heading)
    return np.stack((x + along * cos - across * sin, y + along * sin + across * cos, z + up), axis=1)


def camera_points(points):
    """Move ``(N, 3)`` points to the camera frame."""
    return points @ TO_CAMERA[:3, :3].T + TO_CAMERA[:3, 3]


def label_line(name, box):
    """Describe a box of the LiDAR frame as KITTI does."""
    corners = camera_points(box_points(box, np.array(np.meshgrid(*[(-0.5, 0.5)] * 3)).reshape(3, -1).T))
    u, v, w = P2 @ np.c_[corners, np.ones(8)].T
    left, right = np.clip((u / w).min(), 0, IMAGE_SHAPE[1] - 1), np.clip((u / w).max(), 0, IMAGE_SHAPE[1] - 1)
    top, bottom = np.clip((v / w).min(), 0, IMAGE_SHAPE[0] - 1), np.clip((v / w).max(), 0, IMAGE_SHAPE[0] - 1)
    x, y, z = camera_points(np.array(((box[0], box[1], box[2] - box[5] / 2),)))[0]
    rotation_y = -box[6] - np.pi / 2
    numbers = (rotation_y - np.arctan2(x, z), left, top, right, bottom, box[5], box[4], box[3], x, y, z, rotation_y)
    return f"{name} 0.00 0 " + " ".join(f"{number:.6f}" for number in numbers)


def random_objects(rng):
    """Give one object of each class, far enough apart, in view."""
    objects = []
    for lane, name in zip((-6.0, -2.0, 2.0, 6.0), rng.permutation(list(SIZES)), strict=True):
        length, width, height = SIZES[str(name)]
        box = (rng.uniform(12, 24), lane, height / 2 - ROAD, length, width, height, rng.uniform(-np.pi, np.pi))
        objects.append((str(name), box))
    return objects


def scenery(objects, num_points, rng):
    """Scatter points on all sides and leave 5 m around every object free."""
    points = rng.uniform((-30, -30, -ROAD, 0), (40, 30, 1.5, 1), (num_points, 4))
    for _, box in objects:
        points = points[np.linalg.norm(points[:, :2] - np.array(box[:2]), axis=1) > 5]
    return points


def write_kitti_frames(
    root: Path,
    frame_ids: Sequence[str],
    split: str = "train",
    objects: Objects | None = None,
    *,
    points_per_object: int = 40,
    seed: int = 0,
) -> None:
    """Write frames in KITTI's layout and append them to the list of a split.

    Args:
        root: folder of the data set.
        frame_ids: names, digits only.
        split: ``test`` goes to ``testing`` and gets no labels.
        objects: ``(name, box in the LiDAR frame)`` of every frame; one random object of each class by default.
        points_per_object: drawn from inside the middle 80 % of each box.
        seed: of everything random.
    """
    folder = root / ("testing" if split == "test" else "training")
    for kind in ("velodyne", "calib", "image_2", "planes", "../ImageSets", *(["label_2"] if split != "test" else [])):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    calib = "".join(
        f"{name}: {' '.join(f'{number:.12e}' for number in matrix.ravel())}\n"
        for name, matrix in (("P2", P2), ("R0_rect", R0), ("Tr_velo_to_cam", TR))
    )
    plane = np.linalg.inv(TO_CAMERA).T @ (0, 0, 1, ROAD)
    for frame_id in frame_ids:
        rng = np.random.default_rng((seed, int(frame_id)))
        chosen = random_objects(rng) if objects is None else objects
        clouds = [scenery(chosen, 1500, rng)]
        for _, box in chosen:
            xyz = box_points(box, rng.uniform(-0.4, 0.4, (points_per_object, 3)))
            clouds.append(np.c_[xyz, rng.uniform(0, 1, points_per_object)])
        np.concatenate(clouds).astype(np.float32).tofile(folder / "velodyne" / f"{frame_id}.bin")
        Image.new("L", IMAGE_SHAPE[::-1]).save(folder / "image_2" / f"{frame_id}.png")
        (folder / "calib" / f"{frame_id}.txt").write_text(calib)
        text = f"# Matrix\nWIDTH 4\nHEIGHT 1\n{' '.join(map(str, plane))}\n"
        (folder / "planes" / f"{frame_id}.txt").write_text(text)
        if split != "test":
            lines = [label_line(name, box) for name, box in chosen]
            lines.append("DontCare -1 -1 -10 500.0 170.0 520.0 180.0 -1 -1 -1 -1000 -1000 -1000 -10")
            (folder / "label_2" / f"{frame_id}.txt").write_text("\n".join(lines) + "\n")
    with (root / "ImageSets" / f"{split}.txt").open("a") as file:
        file.writelines(f"{frame_id}\n" for frame_id in frame_ids)
