"""What reports compare: detectors, what they must be made of first, and what is said of all of them."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from easydict import EasyDict
from torch import nn

from cakdp_ext import __version__
from cakdp_ext.checkpoint import find_checkpoint, read_checkpoint
from cakdp_ext.config import ConfigError
from cakdp_ext.engine.build import distill_config, load_source_config, pruning_config
from cakdp_ext.engine.cut import Place
from cakdp_ext.engine.data import build_split
from cakdp_ext.engine.distributed import Workers, gather
from cakdp_ext.engine.measure import device_name
from cakdp_ext.engine.prune import CutRequest, make_plan, require_made_with
from cakdp_ext.engine.runs import LOG, RunFolder
from cakdp_ext.engine.score import required_pruning, score, unpruned_student
from cakdp_ext.pruning import RANKED, load_plan, model_fingerprint
from cakdp_ext.types import Detections

STUDENT = "student"


@dataclass(frozen=True)
class Contestant:
    """One row of the report: a detector and what to say about it."""

    name: str
    model: nn.Module
    note: str = ""
    is_shown: bool = True


def shown_ap(metrics: Mapping[str, float]) -> dict[str, float]:
    """Choose what a report shows of ``Evaluation.metrics``."""
    return {
        key: value
        for key, value in metrics.items()
        if (key.endswith("_R40") and ("_3d/" in key or "_bev/" in key) and not key.startswith("mAP"))
        or "_LEVEL_" in key
    }


def headline_metrics_of(config: EasyDict) -> tuple[str, ...]:
    """Name the metrics that the paper compares: moderate 3D AP on KITTI, LEVEL_2 APH on Waymo."""
    if (config.MODEL.get("POST_PROCESSING") or {}).get("EVAL_METRIC") == "waymo":
        return tuple(f"OBJECT_TYPE_TYPE_{name.upper()}_LEVEL_2/APH" for name in config.CLASS_NAMES)
    return tuple(f"{name}_3d/moderate_R40" for name in config.CLASS_NAMES)


def require_sources(config: EasyDict) -> None:
    """Look at every file that a later stage needs before the first one spends hours.

    Raises:
        ConfigError, CheckpointError: for one that is missing.
    """
    pruning, distill = pruning_config(config), distill_config(config)
    sources = [pruning.student] if pruning is not None else []
    sources += [distill.teacher] if distill is not None else []
    for source in sources:
        load_source_config(source, config.CONFIG_FILE)
        content = read_checkpoint(source.ckpt)
        if content.get("it", 0) < content.get("schedule_state", {}).get("total_steps", 0):
            LOG.warning("%s is the checkpoint of a training that has not ended", find_checkpoint(source.ckpt))


def ensure_plan(config: EasyDict, run: RunFolder, place: Workers, num_workers: int) -> None:
    """Score with all processes and let the first one plan, unless the run folder or the YAML holds a plan already.

    Raises:
        ConfigError: for a plan that was made with other settings, or for another student.
    """
    pruning = required_pruning(config)
    if not gather(place.is_main and _lacks_plan(config, run))[0]:
        return
    if not pruning.scores and pruning.criterion in RANKED:
        score(config, run, place, num_workers)
    if place.is_main:
        make_plan(config, run, CutRequest(Place(place.device), shows_costs=False))  # the report measures the result


def _lacks_plan(config: EasyDict, run: RunFolder) -> bool:
    pruning = required_pruning(config)
    if not pruning.plan and run.plan.is_file():
        source = load_plan(run.plan).source
        require_made_with(source, pruning, str(run.plan))
        student = unpruned_student(config, build_split(config, str(config.DATA_CONFIG.DATA_SPLIT["test"])).geometry)
        if source.get("scored_model") not in ("", None, model_fingerprint(student)):
            raise ConfigError(
                f"{run.plan} was made for another student than {pruning.student.ckpt} holds now; "
                "use another --extra_tag"
            )
    if pruning.plan or run.plan.is_file():
        LOG.info("pruning plan: %s", pruning.plan or run.plan)
        return False
    return True


def speak_of(ours: Sequence[str], theirs: Sequence[str], model: nn.Module) -> None:
    """Let a detector that lists the same classes in another order name its detections by our labels."""
    if list(ours) == list(theirs):
        return
    label = torch.tensor([list(ours).index(name) for name in theirs])

    def renumber(_: nn.Module, __: Any, found: list[Detections]) -> list[Detections]:
        return [replace(one, labels=label.to(one.labels.device)[one.labels]) for one in found]

    model.register_forward_hook(renumber)


def environment_of(place: Workers) -> dict[str, str]:
    """Say what a report was made with."""
    return {
        "cakdp_ext": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device_name(place.device),
    }
