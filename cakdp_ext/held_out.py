"""Which frames of the training split is nothing trained on?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from cakdp_ext.config import ConfigError

HELD_OUT = "held_out"
"""Name of the split that ``DATA_CONFIG.NUM_HELD_OUT`` frames of train make up."""


def evenly_spaced(total: int, count: int) -> list[int]:
    """Give ``count`` ascending indices into ``total`` things, the first and the last among them from two on."""
    return np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist() if count else []


def frames_of(split: str, train_frames: Sequence[str], count: int, segments: Sequence[str] | None = None) -> list[str]:
    """Divide the training split: its held-out frames for ``held_out``, all others for any other name.

    Frames of one segment show the same street a moment apart, so that a frame held out between two that are trained
    on would be nothing new: of such a split the fewest evenly spaced segments that hold ``count`` frames are held out
    whole, and the split ``held_out`` may be a little larger than ``count``.

    Args:
        split: what is asked for.
        train_frames: names of all frames of the training split, in order.
        count: ``DATA_CONFIG.NUM_HELD_OUT``.
        segments: name of each frame's segment; None where every frame stands for itself.

    Raises:
        ConfigError: when no frame would be left, or when ``held_out`` is asked for and nothing is held out.
    """
    if count >= len(train_frames):
        raise ConfigError(
            f"DATA_CONFIG.NUM_HELD_OUT is {count}, but the training split has {len(train_frames)} frames; "
            "hold out fewer, or none"
        )
    held_out = _held_out(train_frames, count, segments)
    if split == HELD_OUT:
        if not held_out:
            raise ConfigError(
                "split held_out is empty: set DATA_CONFIG.NUM_HELD_OUT before the student is trained, "
                "or score on the training frames with MODEL.PRUNING.SPLIT train"
            )
        return held_out
    chosen = set(held_out)
    return [frame for frame in train_frames if frame not in chosen]


def segments_held_out(segments: Sequence[str], count: int) -> list[str]:
    """Choose the fewest evenly spaced segments that hold ``count`` frames together.

    Args:
        segments: name of each frame's segment, in order.
        count: of frames.

    Raises:
        ConfigError: when no segment would be left.
    """
    sizes = Counter(segments)
    names = list(sizes)
    for number in range(1 if count else 0, len(names)):
        chosen = [names[i] for i in evenly_spaced(len(names), number)]
        if sum(sizes[name] for name in chosen) >= count:
            return chosen
    raise ConfigError(
        f"DATA_CONFIG.NUM_HELD_OUT is {count}: segments are held out whole, and none of the {len(names)} of the "
        "training split would be left; hold out fewer frames"
    )


def _held_out(train_frames: Sequence[str], count: int, segments: Sequence[str] | None) -> list[str]:
    if segments is None:
        return [train_frames[i] for i in evenly_spaced(len(train_frames), count)]
    chosen = set(segments_held_out(segments, count))
    return [frame for frame, segment in zip(train_frames, segments, strict=True) if segment in chosen]
