"""Frame i, from chance to files."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cakdp_ext.datasets.scenes.camera import Camera, kitti_camera
from cakdp_ext.datasets.scenes.config import SceneConfig
from cakdp_ext.datasets.scenes.labels import Label, label_objects
from cakdp_ext.datasets.scenes.layout import sample_scene
from cakdp_ext.datasets.scenes.lidar import Lidar, RangeImage, Returns
from cakdp_ext.datasets.scenes.picture import Painter
from cakdp_ext.datasets.scenes.scene import Scene

FOLDERS = {"velodyne": ".bin", "calib": ".txt", "label_2": ".txt", "image_2": ".png", "planes": ".txt"}


@dataclass(frozen=True)
class SceneFrame:
    """One generated frame.

    Attributes:
        scene: what stands there.
        image: what every shot meets.
        returns: the point cloud.
        labels: KITTI's labels.
    """

    scene: Scene
    image: RangeImage
    returns: Returns
    labels: tuple[Label, ...]


class FrameGenerator:
    """Generates frames of one configuration; frame i depends on (seed, i) alone."""

    def __init__(self, config: SceneConfig) -> None:
        self.config = config
        self.lidar = Lidar(config.lidar)
        self.camera: Camera = kitti_camera()
        self.painter = Painter(self.camera, self.lidar)

    def generate(self, index: int) -> SceneFrame:
        """Generate frame ``index``."""
        rng = np.random.default_rng((self.config.seed, index))
        scene = sample_scene(self.config, rng)
        image = self.lidar.cast(scene, rng)
        returns = self.lidar.measure(image, rng)
        return SceneFrame(scene, image, returns, label_objects(scene, image, returns, self.camera, self.config))

    def files(self, frame: SceneFrame) -> dict[str, bytes]:
        """Give the content of the frame's files, by KITTI's folder."""
        ground = frame.scene.ground
        plane = self.camera.plane_to_rect(ground.normal, ground.height)
        numbers = " ".join(f"{value:.6e}" for value in plane)
        picture = io.BytesIO()
        Image.fromarray(self.painter.paint(frame.image)).save(picture, format="PNG")
        return {
            "velodyne": frame.returns.points.astype("<f4").tobytes(),
            "calib": self.camera.calibration_text().encode(),
            "label_2": "".join(label.line + "\n" for label in frame.labels).encode(),
            "image_2": picture.getvalue(),
            "planes": f"# Matrix\nWIDTH 4\nHEIGHT 1\n{numbers}\n".encode(),
        }

    def write(self, index: int, training: Path) -> SceneFrame:
        """Generate frame ``index`` and write its files below KITTI's ``training`` folder."""
        frame = self.generate(index)
        for folder, content in self.files(frame).items():
            (training / folder / f"{index:06d}{FOLDERS[folder]}").write_bytes(content)
        return frame
