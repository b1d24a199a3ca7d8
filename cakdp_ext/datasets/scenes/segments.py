"""Generated scenes in Waymo's layout: segments of several sweeps, seen from a moving car."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cakdp_ext.datasets.scenes.config import SceneConfig, SequenceConfig
from cakdp_ext.datasets.scenes.layout import sample_scene
from cakdp_ext.datasets.scenes.lidar import Lidar, RangeImage, Returns
from cakdp_ext.datasets.scenes.motion import Motion, sample_motion
from cakdp_ext.datasets.scenes.scene import Scene
from cakdp_ext.datasets.scenes.shapes import Array, yaw_matrix
from cakdp_ext.datasets.waymo.sweeps import SECONDS
from cakdp_ext.datasets.waymo.writer import WaymoLabel, WaymoSweep, write_segment
from cakdp_ext.waymo_layout import OUTSIDE_NO_LABEL_ZONES

PROCESSED_DATA_TAG = "waymo_processed_data_v0_5_0"
NAMES = {"Car": "Vehicle", "Van": "Vehicle", "Misc": "Vehicle", "Pedestrian": "Pedestrian", "Cyclist": "Cyclist"}
"""KITTI's type -> Waymo's."""
IMAGE_SHAPES = ((1280, 1920), (1280, 1920), (1280, 1920), (886, 1920), (886, 1920))
START_MICROS = 1_500_000_000_000_000


@dataclass(frozen=True)
class Segment:
    """One of the segments of a data set.

    Attributes:
        index: scenes depend on (seed, index).
        split: ``train`` or ``val``.
        num_sweeps: how many it has.
    """

    index: int
    split: str
    num_sweeps: int

    @property
    def name(self) -> str:
        """As in Waymo's lists, without ``.tfrecord``."""
        return f"segment-{self.index:06d}_generated_with_camera_labels"


def segments_of(config: SceneConfig) -> list[Segment]:
    """Divide ``num_train`` and ``num_val`` sweeps into segments; the last one of a split may be shorter."""
    length = _sequence(config).frames
    counts = {"train": config.num_train, "val": config.num_val}
    sizes = [
        (split, min(length, count - start)) for split, count in counts.items() for start in range(0, count, length)
    ]
    return [Segment(index, split, size) for index, (split, size) in enumerate(sizes)]


def write_lists(config: SceneConfig, out: Path) -> None:
    """Write the lists of segments below ``out/ImageSets``."""
    (out / "ImageSets").mkdir(exist_ok=True)
    for split in ("train", "val"):
        names = [f"{segment.name}.tfrecord\n" for segment in segments_of(config) if segment.split == split]
        (out / "ImageSets" / f"{split}.txt").write_text("".join(names), encoding="utf-8")


def write_scene_segment(job: tuple[SceneConfig, Segment, str]) -> list[tuple[int, list[str]]]:
    """Generate one segment and write its files.

    Args:
        job: configuration, segment, and the data's root.

    Returns:
        Points and names of the labelled objects of each sweep.
    """
    config, segment, out = job
    written = []

    def sweeps() -> Iterator[WaymoSweep]:
        for sweep in _generator(config).sweeps(segment):
            written.append((len(sweep.points), [label.name for label in sweep.labels or ()]))
            yield sweep

    write_segment(Path(out) / PROCESSED_DATA_TAG, segment.name, sweeps())
    return written


class SegmentGenerator:
    """Generates segments of one configuration; segment i depends on (seed, i) alone."""

    def __init__(self, config: SceneConfig) -> None:
        self.config = config
        self.lidar = Lidar(config.lidar)

    def sweeps(self, segment: Segment) -> Iterator[WaymoSweep]:
        """Generate the sweeps of a segment, in order."""
        rng = np.random.default_rng((self.config.seed, segment.index))
        scene = sample_scene(self.config, rng, around=self.config.lidar.field_of_view > 180)
        motion = sample_motion(scene, _sequence(self.config), rng)
        world = np.eye(4)
        world[:3, :3] = yaw_matrix(float(rng.uniform(-np.pi, np.pi)))
        world[:3, 3] = rng.uniform(-100.0, 100.0, 3)
        for number in range(segment.num_sweeps):
            yield self._sweep(segment, scene, motion, world, number)

    def _sweep(self, segment: Segment, scene: Scene, motion: Motion, world: Array, number: int) -> WaymoSweep:
        rng = np.random.default_rng((self.config.seed, segment.index, number))
        seconds = SECONDS * number
        now = motion.scene_at(scene, seconds)
        image = self.lidar.cast(now, rng)
        returns = self.lidar.measure(image, rng)
        height = self.config.lidar.height
        headings = np.array([item.box[6] for item in scene.objects])
        speeds = motion.speeds[:, None] * np.stack((np.cos(headings), np.sin(headings)), axis=1) @ world[:2, :2].T
        return WaymoSweep(
            points=_stored(returns, height, rng),
            pose=world @ motion.ego_pose(scene.ground, seconds),
            labels=self._labels(segment, now, image, returns, speeds),
            context_name=segment.name.removeprefix("segment-").removesuffix("_with_camera_labels"),
            timestamp_micros=START_MICROS + round(1e6 * seconds),
            points_of_lidars=(len(returns.points), 0, 0, 0, 0),
            image_shapes=IMAGE_SHAPES,
        )

    def _labels(
        self, segment: Segment, scene: Scene, image: RangeImage, returns: Returns, speeds: Array
    ) -> tuple[WaymoLabel, ...]:
        """Label every object, those that give no point too; what is hardly seen is called hard."""
        num_points = np.bincount(returns.owner[returns.owner >= 0], minlength=len(scene.objects))
        hidden = image.rays_visible < self.config.min_visible * image.rays_alone
        lift = np.array((0.0, 0.0, self.config.lidar.height, 0.0, 0.0, 0.0, 0.0))
        return tuple(
            WaymoLabel(
                name=NAMES[item.name],
                box=item.box + lift,
                speed=(float(speeds[i, 0]), float(speeds[i, 1])),
                difficulty=2 if hidden[i] else 0,
                num_points=int(num_points[i]),
                identity=f"{segment.index}_{i}",
            )
            for i, item in enumerate(scene.objects)
        )


def _stored(returns: Returns, height: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Give points ``(N, 6)`` of the vehicle's frame, whose origin is on the ground below the sensor."""
    points = np.zeros((len(returns.points), 6), dtype=np.float32)
    points[:, :4] = returns.points
    points[:, 2] += height
    points[:, 4] = rng.exponential(0.05, len(points)).clip(0.0, 1.5)
    points[:, 5] = OUTSIDE_NO_LABEL_ZONES
    return points


def _sequence(config: SceneConfig) -> SequenceConfig:
    return config.sequence or SequenceConfig()


@lru_cache(maxsize=2)
def _generator(config: SceneConfig) -> SegmentGenerator:
    return SegmentGenerator(config)
