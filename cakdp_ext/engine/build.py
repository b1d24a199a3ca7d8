"""From YAML to parts: detectors, the compact student with its plan and weights, the frozen teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from easydict import EasyDict
from torch import nn

from cakdp_ext.checkpoint import CheckpointError, find_checkpoint, load_weights, read_checkpoint
from cakdp_ext.config import ConfigError, ModelSource, from_node, load_config
from cakdp_ext.distillation import DistillConfig, FrozenTeacher, read_config, require_same_classes
from cakdp_ext.engine.choice import OPENPCDET, adapter, engine_name
from cakdp_ext.openpcdet.locate import openpcdet_root
from cakdp_ext.openpcdet.resolve import resolve
from cakdp_ext.own_modules import import_modules
from cakdp_ext.pruning import (
    PruningConfig,
    cut_student_,
    inherit_weights,
    load_plan,
    plan_from_dict,
    read_width,
    require_match,
    require_width,
)
from cakdp_ext.types import LidarGeometry, PruningPlan


@dataclass(frozen=True)
class Student:
    """A student ready to train or test.

    Attributes:
        model: the compact network where there is a plan, the full one otherwise.
        plan: what was cut, or None.
    """

    model: nn.Module
    plan: PruningPlan | None


def distill_config(config: Mapping[str, Any]) -> DistillConfig | None:
    """Read ``MODEL.DISTILL``, whose methods the YAML's IMPORTS may register; None where the YAML has none."""
    node = config["MODEL"].get("DISTILL")
    import_modules(config)
    return read_config(node, f"MODEL.DISTILL of {config['CONFIG_FILE']}") if node else None


def pruning_config(config: Mapping[str, Any]) -> PruningConfig | None:
    """Read ``MODEL.PRUNING``; None where the YAML has none."""
    node = config["MODEL"].get("PRUNING")
    return from_node(PruningConfig, node, f"MODEL.PRUNING of {config['CONFIG_FILE']}") if node else None


def load_source_config(source: ModelSource, config_file: str) -> EasyDict:
    """Read the YAML of a model that another YAML names, and its IMPORTS; OpenPCDet's may lie in its own folders."""
    file = source_file(source, config_file)
    config = resolve(file, root=openpcdet_root()) if engine_name() == OPENPCDET else load_config(file)
    import_modules(config)
    return config


def source_file(source: ModelSource, config_file: str) -> Path:
    """Find the YAML of a model that another YAML names.

    It is looked for as bases are: beside the file that names it, then from the working directory, then from every
    folder above the file.
    """
    named = Path(config_file)
    places = (named.parent, Path(), *named.parents, *named.resolve().parents)
    return next((place / source.cfg for place in places if (place / source.cfg).is_file()), Path(source.cfg))


def reads_points(config: Mapping[str, Any]) -> bool:
    """Tell whether the network that the YAML describes, or its teacher, looks at raw points beside the voxels."""
    if "PFE" in config["MODEL"]:
        return True
    distill = distill_config(config)
    if distill is None:
        return False
    try:
        return "PFE" in load_source_config(distill.teacher, str(config["CONFIG_FILE"]))["MODEL"]
    except ConfigError:  # only who builds the teacher needs its YAML, and says so
        return False


def build_full(config: Mapping[str, Any], geometry: LidarGeometry) -> nn.Module:
    """Build the network that the YAML describes, unpruned but as narrow as MODEL.WIDTH says, with random weights.

    Raises:
        ConfigError: for anything in ``MODEL`` that cannot be used, our own sections included.
        MissingSpconvError: where the detectors cannot be imported.
    """
    distill_config(config)
    pruning_config(config)
    return _builder()(config["MODEL"], config["CLASS_NAMES"], geometry)


def _builder() -> Callable[..., nn.Module]:
    """Choose whose detectors are built; imported here, so that a command without spconv can say so."""
    if engine_name() == OPENPCDET:
        of_openpcdet: Callable[..., nn.Module] = adapter("build").build_detector
        return of_openpcdet
    from cakdp_ext.detectors import build_detector

    return build_detector


def build_student(config: Mapping[str, Any], geometry: LidarGeometry, plan: PruningPlan | None) -> Student:
    """Build the student as training starts it: inherited weights where the YAML says so, then the cut.

    Args:
        config: the whole configuration.
        geometry: of the data set.
        plan: what to cut; None builds the full network.

    Raises:
        ConfigError: when the YAML has no PRUNING section and a plan is given, or the reverse.
        CheckpointError: when the inherited weights do not fit.
    """
    model, pruning = build_full(config, geometry), pruning_config(config)
    require_match(pruning, plan, str(config["CONFIG_FILE"]))
    if pruning is None or plan is None:
        return Student(model, None)
    inherit_weights(model, pruning)
    cut_student_(model, plan, geometry)
    return Student(model, plan)


def restore_student(config: Mapping[str, Any], geometry: LidarGeometry, ckpt: str | Path) -> Student:
    """Build the student that a checkpoint holds, its plan included, and load it strictly.

    Raises:
        CheckpointError: when plan or tensors do not belong to the YAML.
    """
    content, file = read_checkpoint(ckpt), find_checkpoint(ckpt)
    plan = plan_from_dict(content["pruning"]) if content.get("pruning") else None
    require_width(content, read_width(config["MODEL"]), file)
    pruning, model = pruning_config(config), build_full(config, geometry)
    try:
        require_match(pruning, plan, str(config["CONFIG_FILE"]))
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error}") from error
    if pruning and plan and pruning.plan and load_plan(pruning.plan).keep_indices != plan.keep_indices:
        raise CheckpointError(f"{file} was cut by another plan than {pruning.plan}; leave MODEL.PRUNING.PLAN empty")
    if plan is not None:
        cut_student_(model, plan, geometry)
    load_weights(model, content["model_state"], file)
    return Student(model, plan)


def build_teacher(config: Mapping[str, Any], geometry: LidarGeometry, device: torch.device) -> FrozenTeacher | None:
    """Build the teacher that ``MODEL.DISTILL.TEACHER`` names; None where nothing is distilled.

    Raises:
        ConfigError: when its classes or its voxels are not the student's.
        CheckpointError: when its checkpoint is absent or does not fit.
    """
    distill = distill_config(config)
    if distill is None:
        return None
    teacher_cfg = load_source_config(distill.teacher, str(config["CONFIG_FILE"]))
    require_same_world(teacher_cfg, config, is_teacher=True)
    model = build_full(teacher_cfg, geometry)
    file = find_checkpoint(distill.teacher.ckpt)
    load_weights(model, read_checkpoint(file)["model_state"], file)
    return FrozenTeacher(model).to(device)


def require_same_world(source: Mapping[str, Any], config: Mapping[str, Any], *, is_teacher: bool = False) -> None:
    """Refuse a teacher or student source that knows other classes or sees other voxels than the YAML that names it.

    Args:
        source: configuration of the teacher, or of the student before the cut.
        config: that names it.
        is_teacher: allow the same classes in another order; distillation goes by their names.

    Raises:
        ConfigError: saying what differs.
    """
    names = source["CONFIG_FILE"], config["CONFIG_FILE"]
    theirs, ours = list(source["CLASS_NAMES"]), list(config["CLASS_NAMES"])
    if is_teacher:
        require_same_classes(ours, theirs, names[1], names[0])
    elif theirs != ours:
        raise ConfigError(
            f"{names[0]} knows the classes {theirs}, {names[1]} {ours}; they must be the same, in the same order"
        )
    if _voxels(source) != _voxels(config):
        raise ConfigError(
            f"{names[0]} sees the range and voxels {_voxels(source)}, {names[1]} {_voxels(config)}; "
            "they share their voxels, so both must be equal"
        )


def _voxels(tree: Mapping[str, Any]) -> tuple[Any, Any]:
    processors = tree["DATA_CONFIG"]["DATA_PROCESSOR"]
    sizes = [list(p["VOXEL_SIZE"]) for p in processors if p["NAME"] == "transform_points_to_voxels"]
    return list(tree["DATA_CONFIG"]["POINT_CLOUD_RANGE"]), sizes
