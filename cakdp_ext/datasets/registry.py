"""What the engine asks of a data set, and how a configuration names one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from cakdp_ext.config import ConfigError
from cakdp_ext.datasets.frame import Frame
from cakdp_ext.types import Batch, Detections, LidarGeometry


@runtime_checkable
class LidarDataset(Protocol):
    """Frames of one split, in a fixed order.

    ``dataset[index]`` is ``dataset[(0, index)]``; ``dataset[(epoch, index)]`` depends on nothing but the data set's
    seed, the epoch and the index, so that workers, restarts and batch sizes change no frame.

    What a data set may have beside: ``segment_ids``, the name of each frame's segment, where frames come in sequences
    (whole segments are then held out of training); ``eval_metric``, a key of ``EVALUATIONS``, KITTI's without it;
    ``evaluate(annotations)``, an evaluation of its own; ``collate``, a batch of its own.
    """

    class_names: tuple[str, ...]
    training: bool
    split: str

    @property
    def geometry(self) -> LidarGeometry:
        """Range, voxel size and features of a point."""
        ...

    @property
    def frame_ids(self) -> list[str]:
        """Names of the frames, in order."""
        ...

    def __len__(self) -> int:
        """Count the frames."""
        ...

    def __getitem__(self, index: int | tuple[int, int]) -> Frame:
        """Load, augment (in training) and voxelise one frame."""
        ...

    def subset(self, frame_ids: Sequence[str]) -> LidarDataset:
        """Give a data set of these frames only, in the order given."""
        ...

    def to_annotations(self, batch: Batch, detections: Sequence[Detections]) -> list[dict[str, Any]]:
        """Express detections in the terms of the data set's evaluation."""
        ...

    def ground_truth(self) -> list[dict[str, Any]]:
        """Give the labels of every frame, in the same terms."""
        ...


DatasetFactory = Callable[..., LidarDataset]
Factory = TypeVar("Factory", bound=DatasetFactory)
_DATASETS: dict[str, DatasetFactory] = {}


def register_dataset(name: str) -> Callable[[Factory], Factory]:
    """Make a data set available to YAML files under ``DATASET: name``.

    The decorated class is called as ``cls(data_cfg, class_names, training, root, seed, split=split)``.

    Raises:
        ValueError: when the name belongs to another class already.
    """

    def register(factory: Factory) -> Factory:
        owner = _DATASETS.setdefault(name, factory)
        if owner is not factory:
            raise ValueError(f"data set {name!r} is registered already, by {owner!r}; choose another name")
        return factory

    return register


def build_dataset(
    data_cfg: Mapping[str, Any],
    class_names: Sequence[str],
    training: bool,
    root: Path | str = ".",
    seed: int = 0,
    *,
    split: str | None = None,
) -> LidarDataset:
    """Build the data set that ``DATA_CONFIG`` describes.

    Args:
        data_cfg: the node ``DATA_CONFIG``.
        class_names: classes to detect; their order gives the labels.
        training: whether frames are augmented.
        root: folder that a relative ``DATA_PATH`` starts from.
        seed: of the augmentation.
        split: overrides ``DATA_SPLIT``.

    Raises:
        ConfigError: for a missing or unknown ``DATASET``; the known ones are listed.
    """
    known = ", ".join(sorted(_DATASETS))
    if "DATASET" not in data_cfg:
        raise ConfigError(f"DATA_CONFIG has no DATASET; known data sets: {known}")
    name = data_cfg["DATASET"]
    if name not in _DATASETS:
        raise ConfigError(f"unknown DATASET {name!r}; known data sets: {known}")
    return _DATASETS[name](data_cfg, class_names, training, Path(root), seed, split=split)
