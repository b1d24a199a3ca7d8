"""Where a run keeps its files: OpenPCDet's output layout, and a log that both people and files read."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from io import TextIOWrapper
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from cakdp_ext.checkpoint import epoch_checkpoints
from cakdp_ext.config import dump_config
from cakdp_ext.files import atomic_path

LOG = logging.getLogger("cakdp_ext")


@dataclass(frozen=True)
class RunFolder:
    """``output/<config folders without the first>/<yaml stem>/<extra_tag>``, as OpenPCDet lays it out."""

    path: Path

    @classmethod
    def of(cls, config_file: str | Path, extra_tag: str = "default", output_dir: str | Path = "output") -> RunFolder:
        """Name the folder of a configuration; nothing is created."""
        config_file = Path(config_file)
        parts = config_file.parent.parts
        parts = parts[parts.index("cfgs") + 1 :] if "cfgs" in parts else parts[-1:]
        return cls(Path(output_dir, *parts, config_file.stem, extra_tag))

    @property
    def ckpt(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "ckpt"

    @property
    def tensorboard(self) -> Path:
        """Folder of the TensorBoard events."""
        return self.path / "tensorboard"

    @property
    def scores(self) -> Path:
        """The filter scores that this run computes."""
        return self.path / "scores.npz"

    @property
    def plan(self) -> Path:
        """The pruning plan that this run applies."""
        return self.path / "plan.json"

    @property
    def plan_picture(self) -> Path:
        """The same as a picture."""
        return self.path / "plan.png"

    def evaluation(self, epoch: str, split: str, tag: str) -> Path:
        """Folder of one evaluation."""
        return self.path / "eval" / f"epoch_{epoch}" / split / tag

    def reported(self, row: str) -> Path:
        """Folder of the evaluation behind a row of the report."""
        return self.path / "eval" / "report" / row.replace(" ", "_")

    def checkpoints(self) -> list[Path]:
        """Epoch checkpoints, oldest first."""
        return epoch_checkpoints(self.ckpt)

    def create(self, config: Mapping[str, Any]) -> RunFolder:
        """Make the folder and keep in it the YAML that was named, and what it came to with bases and ``--set``."""
        self.ckpt.mkdir(parents=True, exist_ok=True)
        shutil.copy2(config["CONFIG_FILE"], self.path)
        with atomic_path(self.path / "merged_config.yaml") as path:
            path.write_text(dump_config(config), encoding="utf-8")
        return self


class _TqdmHandler(logging.Handler):
    """Prints a record without tearing a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


class _LazyFileHandler(logging.FileHandler):
    """Makes file and folder with the first record, so that a command that fails at once leaves nothing."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", delay=True)

    def _open(self) -> TextIOWrapper:
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        return super()._open()


@contextmanager
def logging_to(
    folder: Path | None, prefix: str, is_main: bool = True, *, is_whole: bool = False
) -> Iterator[logging.Logger]:
    """Send the package's log to the console and to ``<folder>/<prefix>_<time>.log`` while the block runs.

    Args:
        folder: where the log file goes; None writes none.
        prefix: e.g. ``train`` or ``log_eval``.
        is_main: processes other than the first log errors only, and to no file.
        is_whole: write the file when the block has ended well, and none otherwise.

    Nested blocks share one console and write to each of their files.
    """
    previous, level, propagate = list(LOG.handlers), LOG.level, LOG.propagate
    handlers: list[logging.Handler] = [] if previous else [_TqdmHandler()]
    held: list[MemoryHandler] = []
    if is_main and folder is not None:
        file = _LazyFileHandler(folder / f"{prefix}_{datetime.now():%Y%m%d-%H%M%S}.log")
        held = [MemoryHandler(10**6, logging.CRITICAL + 1, file, flushOnClose=False)] if is_whole else []
        handlers.extend(held or [file])
    LOG.setLevel(logging.INFO if is_main else logging.ERROR)
    LOG.propagate = False
    for handler in handlers:
        formatter = logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S")
        (handler.target or handler if isinstance(handler, MemoryHandler) else handler).setFormatter(formatter)
        LOG.addHandler(handler)
    try:
        yield LOG
        for handler in held:
            handler.flush()
    finally:
        for handler in handlers:
            handler.close()
        LOG.handlers, LOG.propagate = previous, propagate
        LOG.setLevel(level)
