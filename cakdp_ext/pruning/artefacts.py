"""How do scores and plans outlive a process? Files written whole or not at all, and fingerprints that tie them."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cakdp_ext import __version__
from cakdp_ext.files import atomic_path
from cakdp_ext.pruning.graph import ChannelGraph
from cakdp_ext.types import FilterScores, PruningPlan, RaceResult

SCORES_FORMAT, PLAN_FORMAT, FORMAT_VERSION = "cakdp_ext.filter_scores", "cakdp_ext.pruning_plan", 1
_RACE = ("keep_ratio", "confidence", "agreement", "seed", "num_frames")
_COUNTERS = ("global_step", "num_batches_tracked")


def model_fingerprint(model: nn.Module) -> str:
    """Hash a network's weights: names, shapes, dtypes and bytes of its state dict, step counters left out."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if name.rpartition(".")[2] not in _COUNTERS and isinstance(value, Tensor):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def architecture_fingerprint(graph: ChannelGraph) -> str:
    """Hash what a plan cuts: names and weight shapes of the prunable layers, in canonical order."""
    shapes = [[layer.name, list(layer.weight_shape)] for layer in graph.prunable]
    return hashlib.sha256(json.dumps(shapes).encode()).hexdigest()


def save_scores(path: str | Path, scores: FilterScores) -> None:
    """Write scores to an ``.npz`` file: one array a layer and a JSON header; whole or not at all."""
    header = {
        "format": SCORES_FORMAT,
        "format_version": FORMAT_VERSION,
        "layers": list(scores.values),
        "fingerprint": scores.fingerprint,
        "removal": scores.removal,
        "split": scores.split,
        "frame_ids": list(scores.frame_ids),
        "version": scores.version,
    }
    arrays = {f"scores/{name}": np.asarray(values, np.float64) for name, values in scores.values.items()}
    if scores.gaps is not None:
        arrays["gaps"] = np.asarray(scores.gaps, np.float64)
    if scores.race is not None:
        arrays["decided"] = np.asarray(scores.race.decided, np.int8)
        header["race"] = {name: getattr(scores.race, name) for name in _RACE}
    if scores.spare:
        arrays["spare"] = np.stack(list(scores.spare.values()))
        header["spare_frame_ids"] = list(scores.spare)
    content = io.BytesIO()
    np.savez(content, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)  # type: ignore[arg-type]
    with atomic_path(Path(path)) as temporary:
        temporary.write_bytes(content.getvalue())


def load_scores(path: str | Path) -> FilterScores:
    """Read what :func:`save_scores` wrote.

    Raises:
        ValueError: for a file that is absent, cut off, or no score file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no score file at {path}; write one with tools/score_filters.py")
    try:
        with np.load(path, allow_pickle=False) as content:
            header = json.loads(content["header"].tobytes())
            _require_format(header, SCORES_FORMAT)
            values = {name: np.asarray(content[f"scores/{name}"], np.float64) for name in header["layers"]}
            gaps = np.asarray(content["gaps"], np.float64) if "gaps" in content else None
            race = _race_of(header["race"], content["decided"]) if header.get("race") else None
            names = header.get("spare_frame_ids", [])
            spare = dict(zip(map(str, names), content["spare"] if names else (), strict=True))
        texts = {name: str(header[name]) for name in ("fingerprint", "removal", "split", "version")}
        frames = tuple(map(str, header["frame_ids"]))
        return FilterScores(values=values, frame_ids=frames, gaps=gaps, race=race, spare=spare, **texts)
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no whole score file ({error}); score the filters again") from error


def _race_of(said: Mapping[str, Any], decided: np.ndarray) -> RaceResult:
    """Read how a race ended; earlier versions drew with seed 0 and did not note the number of frames."""
    frames = said.get("num_frames")
    return RaceResult(
        keep_ratio=float(said["keep_ratio"]),
        confidence=float(said["confidence"]),
        agreement=float(said["agreement"]),
        decided=decided,
        seed=int(said.get("seed", 0)),
        num_frames=None if frames is None else int(frames),
    )


def import_score_table(path: str | Path, graph: ChannelGraph) -> FilterScores:
    """Read a score table of the paper's authors: plain text, one row a GPU, one number a filter.

    Args:
        path: text file; numbers are separated by white space or commas.
        graph: of the network that the table is about; its canonical order is that of the columns.

    Returns:
        The sum of the rows. Model and frames are not on record there: the fingerprint and the frame ids are empty.

    Raises:
        ValueError: when the file is absent or empty, holds something else than finite numbers, or has another number
            of columns than the network has prunable filters.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no score table at {path}")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text: {error}; expected one row a GPU, one number a filter") from error
    rows = [_read_row(line, f"{path}, line {i}", graph) for i, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise ValueError(f"{path} holds no row of scores")
    ends = np.cumsum([layer.num_filters for layer in graph.prunable])[:-1]
    names = [layer.name for layer in graph.prunable]
    values = dict(zip(names, np.split(np.sum(rows, axis=0), ends), strict=True))
    return FilterScores(values, fingerprint="", removal="zero_weight", split="val", frame_ids=(), version=__version__)


def _read_row(line: str, where: str, graph: ChannelGraph) -> np.ndarray:
    try:
        row = np.array([float(word) for word in line.replace(",", " ").split()])
    except ValueError as error:
        raise ValueError(f"{where}: {error}; expected one number a filter") from error
    if len(row) != graph.num_filters:
        raise ValueError(
            f"{where} has {len(row)} numbers, but the network has {graph.num_filters} prunable filters; "
            "take the table of this very network"
        )
    if not np.isfinite(row).all():
        raise ValueError(f"{where}: number {int((~np.isfinite(row)).argmax()) + 1} is not finite")
    return row


def plan_to_dict(plan: PruningPlan) -> dict[str, Any]:
    """Turn a plan into plain lists, numbers and strings, for checkpoints and JSON."""
    return {
        "format": PLAN_FORMAT,
        "format_version": FORMAT_VERSION,
        "fingerprint": plan.fingerprint,
        "num_filters": {name: int(total) for name, total in plan.num_filters.items()},
        "keep_indices": {name: [int(i) for i in kept] for name, kept in plan.keep_indices.items()},
        "source": dict(plan.source),
    }


def plan_from_dict(content: Mapping[str, Any]) -> PruningPlan:
    """Make a plan of what :func:`plan_to_dict` gave.

    Raises:
        ValueError: for anything else, an unknown format version, or indices that are not ascending filters of their
            layer.
    """
    _require_format(content, PLAN_FORMAT)
    missing = [key for key in ("fingerprint", "num_filters", "keep_indices") if key not in content]
    if missing:
        raise ValueError(f"the plan has no {', '.join(missing)}")
    totals, keeps = dict(content["num_filters"]), dict(content["keep_indices"])
    if list(totals) != list(keeps):
        raise ValueError(f"num_filters names {', '.join(totals)}, keep_indices {', '.join(keeps)}; they must agree")
    for name, kept in keeps.items():
        is_int = all(type(i) is int for i in (*kept, totals[name]))
        if not is_int or kept != sorted(set(kept)) or not all(0 <= i < totals[name] for i in kept):
            raise ValueError(f"keep_indices of {name} must be ascending filters below {totals[name]}, got {kept}")
    keep_indices = {name: tuple(kept) for name, kept in keeps.items()}
    return PruningPlan(keep_indices, totals, str(content["fingerprint"]), dict(content.get("source", {})))


def save_plan(path: str | Path, plan: PruningPlan) -> None:
    """Write a plan to a ``.json`` file for people and programs; whole or not at all."""
    text = json.dumps(plan_to_dict(plan), indent=2, allow_nan=False)
    one_line_lists = re.sub(r"\[[^\[\]{}\"]*\]", lambda match: re.sub(r"\s+", " ", match[0]), text)
    with atomic_path(Path(path)) as temporary:
        temporary.write_bytes((one_line_lists + "\n").encode())


def load_plan(path: str | Path) -> PruningPlan:
    """Read what :func:`save_plan` wrote.

    Raises:
        ValueError: for a file that is absent, cut off, or no plan.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no pruning plan at {path}; write one with tools/prune.py")
    try:
        return plan_from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no whole pruning plan: {error}") from error


def _require_format(content: Any, expected: str) -> None:
    if not isinstance(content, Mapping) or content.get("format") != expected:
        raise ValueError(f"expected the format {expected}")
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(f"format version {version} is not {FORMAT_VERSION}, which cakdp_ext {__version__} reads")
