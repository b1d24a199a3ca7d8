"""KITTI's folders, one file of one frame at a time."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from cakdp_ext.datasets.kitti.calibration import Calibration, read_calibration_parts
from cakdp_ext.datasets.kitti.labels import ObjectLabel, read_labels

log = logging.getLogger(__name__)

POINT_FEATURES = 4
LAYOUT = (
    "expected KITTI's layout: ImageSets/{train,val,test}.txt and "
    "{training,testing}/{velodyne,calib,label_2,image_2,planes}; set DATA_PATH to the folder that holds these"
)


@dataclass(frozen=True)
class KittiFolder:
    """Reads the files of one split.

    Attributes:
        root: folder that holds ``ImageSets``, ``training`` and ``testing``.
        split: ``test`` reads from ``testing``, every other split from ``training``.
    """

    root: Path
    split: str

    @property
    def frames_folder(self) -> Path:
        """``training`` or ``testing``."""
        return self.root / ("testing" if self.split == "test" else "training")

    @property
    def list_file(self) -> Path:
        """File that names the frames of the split."""
        return self.root / "ImageSets" / f"{self.split}.txt"

    def frame_ids(self) -> list[str]:
        """Read the names of the split's frames, in the order of the list.

        Raises:
            FileNotFoundError: when the root or the list is missing.
        """
        if not self.root.is_dir():
            raise FileNotFoundError(f"no data folder {self.root}; {LAYOUT}")
        if not self.list_file.is_file():
            raise FileNotFoundError(f"no list of frames {self.list_file}; {LAYOUT}")
        return self.list_file.read_text(encoding="ascii", errors="replace").split()

    def points(self, frame_id: str) -> np.ndarray:
        """Read ``(N, 4)`` float32 x, y, z in metres and reflectance."""
        return read_points(self._file("velodyne", frame_id, ".bin"))

    def calibration_parts(self, frame_id: str) -> dict[str, np.ndarray]:
        """Read ``P2``, ``R0_rect`` and ``Tr_velo_to_cam``."""
        return read_calibration_parts(self._file("calib", frame_id, ".txt"))

    def calibration(self, frame_id: str) -> Calibration:
        """Read the frame's transforms."""
        return Calibration.from_parts(self.calibration_parts(frame_id))

    def labels(self, frame_id: str) -> list[ObjectLabel]:
        """Read the frame's objects, regions to ignore last."""
        return read_labels(self._file("label_2", frame_id, ".txt"))

    def image_shape(self, frame_id: str) -> np.ndarray:
        """Read height and width ``(2,)`` int32 from the image's header; the picture is not decoded."""
        path = self._file("image_2", frame_id, ".png")
        try:
            with Image.open(path) as image:
                return np.array((image.height, image.width), dtype=np.int32)
        except UnidentifiedImageError as error:
            raise ValueError(f"{path} is no image; copy it again") from error

    def road_plane(self, frame_id: str) -> np.ndarray:
        """Read the road's plane ``(4,)`` a, b, c, d in the camera frame.

        Raises:
            FileNotFoundError: when there is none; planes are distributed apart from KITTI.
            ValueError: when the file's last line is no plane.
        """
        path = self._file(
            "planes", frame_id, ".txt", "or set USE_ROAD_PLANE: False for gt_sampling in the YAML's AUG_CONFIG_LIST"
        )
        lines = path.read_text(encoding="ascii", errors="replace").split("\n")
        rows = [line for line in lines if line.strip() and not line.startswith("#")]
        try:
            plane = np.array(rows[-1].split(), dtype=np.float64).reshape(4)
        except (IndexError, ValueError) as error:
            raise ValueError(f"{path}: expected four numbers a b c d in the last line, got {rows[-1:]}") from error
        if abs(plane[1]) < 0.1 * np.linalg.norm(plane[:3]) or not np.isfinite(plane).all():
            raise ValueError(f"{path}: {rows[-1]!r} is no road, its plane is nearly vertical")
        return plane

    def _file(self, kind: str, frame_id: str, suffix: str, otherwise: str = "") -> Path:
        path = self.frames_folder / kind / f"{frame_id}{suffix}"
        if path.is_file():
            return path
        missing = next((p for p in (self.root, self.frames_folder, path.parent) if not p.is_dir()), None)
        what = f"no folder {missing}" if missing is not None else f"no file {path}"
        raise FileNotFoundError(" ".join(filter(None, (f"{what}, needed for frame {frame_id}; {LAYOUT}", otherwise))))


def read_points(path: Path, num_features: int = POINT_FEATURES) -> np.ndarray:
    """Read points stored as float32, feature by feature.

    Points with a value that is not finite are dropped, and how many is logged.

    Args:
        path: the ``.bin`` file.
        num_features: values a point.

    Returns:
        ``(N, num_features)`` float32; N may be 0.

    Raises:
        ValueError: when the file's size is no whole number of points.
    """
    size, point_size = path.stat().st_size, 4 * num_features
    if size % point_size:
        raise ValueError(
            f"{path} is truncated or of another format: {size} bytes are no multiple of {point_size} "
            f"({num_features} float32 a point); copy it again"
        )
    points = np.fromfile(path, dtype=np.float32).reshape(-1, num_features)
    finite = np.isfinite(points).all(axis=1)
    if finite.all():
        return points
    log.warning("%s: %d of %d points are not finite and were dropped", path, int((~finite).sum()), len(points))
    return points[finite]
