"""Where are Waymo's processed segments? Lists of them, one pickle a segment, one array a sweep."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cakdp_ext.pickles import load_arrays

log = logging.getLogger(__name__)

STORED = ("x", "y", "z", "intensity", "elongation", "no_label_zone")
"""Columns of a stored sweep: metres, two float features, and -1 outside no-label zones."""
NUM_FEATURES = 5
"""Columns that a detector may see; the last one only says which points to leave out."""
OUTSIDE_NO_LABEL_ZONES = -1
LAYOUT = (
    "expected OpenPCDet's layout: ImageSets/{train,val}.txt and <PROCESSED_DATA_TAG>/<segment>/{<segment>.pkl,0000.npy,"
    "...}; set DATA_PATH and PROCESSED_DATA_TAG to it (docs/waymo.md)"
)
_PREFIXES = ("training_", "validation_", "testing_")
_CAMERA_SUFFIX = "_with_camera_labels"


@dataclass(frozen=True)
class WaymoFolder:
    """Reads segments and sweeps.

    Attributes:
        root: folder that holds ``ImageSets`` and the processed data.
        tag: ``PROCESSED_DATA_TAG``, the folder of the segments.
    """

    root: Path
    tag: str

    @property
    def segments_folder(self) -> Path:
        """Folder that holds one folder a segment."""
        return self.root / self.tag

    def segments(self, split: str) -> list[str]:
        """Read the names of a split's segments, in the order of its list; suffixes such as ``.tfrecord`` are cut.

        Raises:
            FileNotFoundError: when the list is missing.
        """
        path = self.root / "ImageSets" / f"{split}.txt"
        if not path.is_file():
            raise FileNotFoundError(f"no list of segments {path}; {LAYOUT}")
        lines = path.read_text(encoding="ascii", errors="replace").split()
        return [Path(line).stem for line in lines]

    def split_infos(self, split: str) -> list[dict[str, Any]]:
        """Read what is known of every sweep of a split, segment by segment.

        Segments that have not been processed are left out, with a warning that counts them.

        Raises:
            FileNotFoundError: when the list is missing, or not one of its segments is there.
            ValueError: when a segment's pickle cannot be read.
        """
        names = self.segments(split)
        files = [self.info_file(name) for name in names]
        missing = [name for name, file in zip(names, files, strict=True) if file is None]
        if names and len(missing) == len(names):
            raise FileNotFoundError(
                f"none of the {len(names)} segments of ImageSets/{split}.txt lies in {self.segments_folder} "
                f"(first: {missing[0]}); {LAYOUT}"
            )
        if missing:
            log.warning("%d of %d segments of %s are not in %s and are left out, the first of them %s",
                        len(missing), len(names), split, self.segments_folder, missing[0])  # fmt: skip
        return [info for file in files if file is not None for info in _read_segment(file)]

    def info_file(self, name: str) -> Path | None:
        """Find a segment's pickle, under any of the names that releases gave to it; None where there is none."""
        for folder in (name, *(prefix + name for prefix in _PREFIXES), name.replace(_CAMERA_SUFFIX, "")):
            file = self.segments_folder / folder / f"{folder}.pkl"
            if file.is_file():
                return file
        return None

    def points(self, segment: str, sample_idx: int) -> np.ndarray:
        """Read a sweep as it is stored.

        Points without finite coordinates are dropped, and how many is logged; other values that are not finite
        (intensities are, now and then) become 0.

        Args:
            segment: its name.
            sample_idx: number of the sweep in its segment.

        Returns:
            ``(N, 6)`` float32, see ``STORED``; N may be 0.

        Raises:
            FileNotFoundError: when it is missing.
            ValueError: for another shape or a file that is no array.
        """
        path = self.segments_folder / segment / f"{sample_idx:04d}.npy"
        if not path.is_file():
            raise FileNotFoundError(f"no sweep {path}; {LAYOUT}")
        points = _load(path)
        if points.ndim != 2 or points.shape[1] != len(STORED):
            raise ValueError(
                f"{path} holds an array {points.shape}, expected (N, {len(STORED)}) with {', '.join(STORED)}; "
                "convert the segment again"
            )
        return _finite(points.astype(np.float32, copy=False), path)


def _read_segment(file: Path) -> list[dict[str, Any]]:
    infos = load_arrays(file)
    is_list = isinstance(infos, list) and all(isinstance(info, Mapping) and "point_cloud" in info for info in infos)
    if not is_list:
        raise ValueError(f"{file} does not describe sweeps; expected a list of mappings with point_cloud, pose, annos")
    return [dict(info) for info in infos]


def _load(path: Path) -> np.ndarray:
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is truncated or no array ({error}); convert the segment again") from error


def _finite(points: np.ndarray, path: Path) -> np.ndarray:
    if np.isfinite(points).all():
        return points
    placed = np.isfinite(points[:, :3]).all(axis=1)
    if not placed.all():
        log.warning("%s: %d of %d points have no finite place and were dropped", path, (~placed).sum(), len(points))
    return np.nan_to_num(points[placed], nan=0.0, posinf=0.0, neginf=0.0)
