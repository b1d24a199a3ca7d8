"""Run trainings and leave what each process ends with: torchrun two_ranks.py JOBS.json."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from cakdp_ext.config import load_config
from cakdp_ext.engine import train as training
from cakdp_ext.engine.distributed import Workers, workers
from cakdp_ext.engine.runs import RunFolder, logging_to
from cakdp_ext.engine.train import TrainRequest, train
from cakdp_ext.engine.trainer import Trainer


class KeptTrainer(Trainer):
    """Leaves the last trainer of this process where it can be found."""

    last: Trainer

    def fit(self) -> None:
        """Train."""
        KeptTrainer.last = self
        super().fit()


def run(place: Workers, cfg: str, output: str, overrides: Sequence[str]) -> None:
    """Train at one frame a process."""
    folder = Path(output)
    with logging_to(folder, "train", place.is_main):
        request = TrainRequest(batch_size=2, num_workers=0, epochs=2, log_every=1)
        model = train(load_config(cfg, overrides), RunFolder(folder), place, request).model
    ends = {
        "parameters": {name: value.detach() for name, value in model.named_parameters()},
        "projectors": KeptTrainer.last.step.distiller.state_dict() if KeptTrainer.last.step.distiller else {},
        "means": {name: value for name, value in model.named_buffers() if "running_mean" in name},
    }
    torch.save(ends, folder / f"rank_{place.rank}.pth")


if __name__ == "__main__":
    torch.set_num_threads(1)
    training.Trainer = KeptTrainer  # type: ignore[misc]
    with workers("cpu") as here:
        for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
            run(here, **job)
