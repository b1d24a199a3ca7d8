"""Annotations of all frames, checked, as columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cakdp_ext.types import Annotations


def check_frames(ground_truth: Annotations, detections: Annotations) -> None:
    """Raise ValueError unless both hold the same frames in the same order.

    Ids are compared where both sides carry a ``frame_id``; without them the order is trusted.
    """
    if len(ground_truth) != len(detections):
        raise ValueError(
            f"there are {len(ground_truth)} frames of ground truth and {len(detections)} of detections; "
            "give one mapping for every frame, with empty arrays where nothing was found"
        )
    for index, (truth, found) in enumerate(zip(ground_truth, detections, strict=True)):
        if "frame_id" in truth and "frame_id" in found and str(truth["frame_id"]) != str(found["frame_id"]):
            raise ValueError(
                f"frame {index} is {truth['frame_id']} in the ground truth and {found['frame_id']} in the "
                "detections; sort both by frame"
            )


def read_table(annotations: Annotations, widths: Mapping[str, tuple[int, ...]], source: str) -> dict[str, np.ndarray]:
    """Put the objects of F frames into columns.

    Args:
        annotations: one mapping a frame, with ``name`` and the keys of ``widths``.
        widths: key -> shape of one object's value.
        source: what errors call them, e.g. ``detections``.

    Returns:
        Float64 columns, ``names`` in lower case, and ``starts (F + 1,)``: frame f holds objects ``starts[f]`` to
        ``starts[f + 1] - 1``.

    Raises:
        ValueError: for a missing key, another shape or a number that is not finite; it names the frame.
    """
    frames = [_read_frame(frame, widths, _describe(annotations, i, source)) for i, frame in enumerate(annotations)]
    starts = np.cumsum([0, *(len(frame["name"]) for frame in frames)])
    table = {
        key: np.concatenate([np.zeros((0, *width)), *(frame[key] for frame in frames)]) for key, width in widths.items()
    }
    for key, values in table.items():
        bad = np.argwhere(~np.isfinite(values))[:1, 0]
        if len(bad):
            index = int(np.searchsorted(starts, bad[0], side="right")) - 1
            raise ValueError(
                f"{key} of object {bad[0] - starts[index]} in the {_describe(annotations, index, source)} is "
                f"{values[bad[0]].tolist()}; every number must be finite, so drop the object or mend what made it"
            )
    names = np.concatenate([np.zeros(0, dtype="<U1"), *(frame["name"] for frame in frames)])
    return {**table, "starts": starts, "names": np.char.lower(names)}


def _read_frame(frame: Mapping[str, Any], widths: Mapping[str, tuple[int, ...]], where: str) -> dict[str, np.ndarray]:
    missing = [key for key in ("name", *widths) if key not in frame]
    if missing:
        raise ValueError(f"{where} lack {', '.join(missing)}; keys there: {', '.join(map(str, frame))}")
    names = np.asarray(frame["name"], dtype=str).reshape(-1)
    columns = {key: _read_column(frame[key], (len(names), *width), key, where) for key, width in widths.items()}
    return {"name": names, **columns}


def _read_column(values: Any, shape: tuple[int, ...], key: str, where: str) -> np.ndarray:
    column = np.asarray(values, dtype=np.float64)
    if column.size == 0 and shape[0] == 0:
        return column.reshape(shape)
    if column.shape != shape:
        raise ValueError(f"{key} in the {where} must have shape {shape} for {shape[0]} names, got {column.shape}")
    return column


def _describe(annotations: Annotations, index: int, source: str) -> str:
    return f"{source} of frame {annotations[index].get('frame_id', index)}"
