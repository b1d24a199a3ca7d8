"""Which frames, in which order: data splits, frames held out for scoring, samplers and loaders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from cakdp_ext.config import ConfigError
from cakdp_ext.datasets import LidarDataset, build_dataset, collate
from cakdp_ext.engine.build import reads_points
from cakdp_ext.engine.choice import OPENPCDET, adapter, engine_name
from cakdp_ext.engine.distributed import Workers
from cakdp_ext.held_out import HELD_OUT, frames_of
from cakdp_ext.types import Batch


def build_split(config: Mapping[str, Any], split: str, *, training: bool = False, seed: int = 0) -> LidarDataset:
    """Build the frames of one split; OpenPCDet's engine trains on its own, so that it has the others only.

    ``DATA_CONFIG.NUM_HELD_OUT`` frames of ``DATA_SPLIT.train``, evenly spaced, are never trained on: they make up the
    split ``held_out``, from which filters are scored without touching the frames that AP is reported on.

    Points go into the batches beside the voxels where the network or its teacher reads them, unless
    ``DATA_CONFIG.KEEP_POINTS`` says otherwise.

    Args:
        config: the whole configuration.
        split: ``train``, ``val``, ``test``, ``held_out`` or any other that the data set knows.
        training: whether frames are augmented.
        seed: of the augmentation.

    Raises:
        ConfigError: for a split without frames, or when ``held_out`` is asked for and nothing is held out.
    """
    if engine_name() == OPENPCDET and not training:
        dataset_of_openpcdet: LidarDataset = adapter("frames").build_split(config, split)
        return dataset_of_openpcdet
    data_cfg = {"KEEP_POINTS": reads_points(config), **config["DATA_CONFIG"]}
    train = str(data_cfg["DATA_SPLIT"]["train"])
    base = train if split == HELD_OUT else split
    dataset = build_dataset(data_cfg, config["CLASS_NAMES"], training, Path(), seed, split=base)
    if len(dataset) == 0:
        raise ConfigError(
            f"split {base} of {data_cfg['DATA_PATH']} has no frames; list them in ImageSets/{base}.txt and run "
            "tools/make_infos.py again"
        )
    if base != train:
        return dataset
    frames = frames_of(split, dataset.frame_ids, int(data_cfg.get("NUM_HELD_OUT", 0)))
    return dataset if len(frames) == len(dataset) else dataset.subset(frames)


class EpochSampler(Sampler[tuple[int, int]]):
    """Shuffles by (seed, epoch), deals frames out to the workers, and can start in the middle of an epoch.

    It yields ``(epoch, index)``, so that the augmentation of a frame depends on nothing else. The last frames
    are repeated where the workers would get uneven shares.
    """

    def __init__(self, num_frames: int, place: Workers, seed: int, batch_size: int) -> None:
        if num_frames == 0:
            raise ConfigError("the training split has no frames")
        self.num_frames, self.place, self.seed, self.batch_size = num_frames, place, seed, batch_size
        self.epoch, self.start_batch = 0, 0

    def set_position(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the epoch and the first batch of it."""
        self.epoch, self.start_batch = epoch, start_batch

    def __len__(self) -> int:
        return -(-self.num_frames // self.place.world_size)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_frames)
        order = np.resize(order, len(self) * self.place.world_size)[self.place.rank :: self.place.world_size]
        for index in order[self.start_batch * self.batch_size :]:
            yield self.epoch, int(index)


def training_loader(
    dataset: LidarDataset, place: Workers, *, batch_size: int, num_workers: int, seed: int
) -> tuple[DataLoader, EpochSampler]:
    """Batches for training; set the sampler's position before each epoch."""
    sampler = EpochSampler(len(dataset), place, seed, batch_size)
    return _loader(dataset, batch_size, num_workers, sampler, place), sampler


def evaluation_loader(dataset: LidarDataset, place: Workers, *, batch_size: int, num_workers: int) -> DataLoader:
    """Every frame once, in order; each worker gets every world_size-th one, shares may differ by one."""
    share = range(place.rank, len(dataset), place.world_size)
    return _loader(dataset, batch_size, num_workers, share, place)


def one_frame(dataset: LidarDataset, index: int) -> Batch:
    """Load one frame as a batch of its own, on the CPU."""
    batch: Batch = getattr(dataset, "collate", collate)([dataset[index]])
    return batch


def _loader(dataset: Any, batch_size: int, num_workers: int, sampler: Any, place: Workers) -> DataLoader:
    num_workers = min(num_workers, os.cpu_count() or 1)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        collate_fn=getattr(dataset, "collate", collate),
        pin_memory=place.device.type == "cuda",
        generator=torch.Generator(),  # so that opening a loader draws nothing from the model's random numbers
    )
