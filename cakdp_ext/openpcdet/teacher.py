"""The teacher of a student that OpenPCDet trains: a detector of OpenPCDet's from another YAML."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy, deepcopy
from typing import Any

from pcdet.models import detectors

from cakdp_ext.checkpoint import find_checkpoint, load_weights, read_checkpoint
from cakdp_ext.config import ConfigError, load_config
from cakdp_ext.distillation import DistillConfig, FrozenTeacher, build_methods, require_same_classes, roles_of
from cakdp_ext.openpcdet.faces import geometry_of, with_faces
from cakdp_ext.openpcdet.locate import root_if_any
from cakdp_ext.openpcdet.resolve import places
from cakdp_ext.own_modules import import_modules
from cakdp_ext.types import Role

_VOXELIZERS = ("transform_points_to_voxels", "transform_points_to_voxels_placeholder")
"""The second only says how large the voxels are, for networks that sort the points themselves."""


def build_teacher(distill: DistillConfig, dataset: Any) -> FrozenTeacher:
    """Build and load the teacher that ``MODEL.DISTILL.TEACHER`` names.

    Args:
        distill: its CFG is relative to the working directory.
        dataset: of the student; it gives the teacher its voxels.

    Raises:
        ConfigError: for an unknown detector, one without a dense head or, where a method asks it, a second stage, other
            classes or other voxels than the student's.
        CheckpointError: naming the first tensor of the checkpoint that does not fit.
    """
    config = load_config(distill.teacher.cfg, search=places(root_if_any()))
    require_same_world(config, dataset)
    import_modules(config)
    known = detectors.__all__
    name = config.MODEL.NAME
    if name not in known:
        raise ConfigError(f"{distill.teacher.cfg}: OpenPCDet has no detector {name!r}; it has {', '.join(known)}")
    detector = with_faces(known[name])
    seen = _with_classes(dataset, list(config.CLASS_NAMES))
    model: Any = detector(model_cfg=deepcopy(config.MODEL), num_class=len(config.CLASS_NAMES), dataset=seen)
    if Role.SECOND_STAGE in roles_of(build_methods(distill).values()):
        model.require_two_stages()
    model.require_dense_head()
    file = find_checkpoint(distill.teacher.ckpt)
    load_weights(model, read_checkpoint(file)["model_state"], file)
    return FrozenTeacher(model)


def _with_classes(dataset: Any, class_names: list[str]) -> Any:
    """Show a data set to a detector whose classes are the same in another order."""
    if list(dataset.class_names) == class_names:
        return dataset
    seen = copy(dataset)
    seen.class_names = class_names
    return seen


def require_same_world(config: Mapping[str, Any], dataset: Any) -> None:
    """Refuse a teacher that knows other classes, or sees other voxels, than the student's data set gives.

    The order of the classes is free: distillation goes by their names.

    Raises:
        ConfigError: saying what differs.
    """
    file, geometry = config["CONFIG_FILE"], geometry_of(dataset)
    require_same_classes(list(dataset.class_names), list(config["CLASS_NAMES"]), teacher=file)
    processors = config["DATA_CONFIG"]["DATA_PROCESSOR"]
    sizes = [tuple(map(float, p["VOXEL_SIZE"])) for p in processors if p["NAME"] in _VOXELIZERS]
    theirs = tuple(map(float, config["DATA_CONFIG"]["POINT_CLOUD_RANGE"])), sizes[0] if sizes else None
    if theirs != (geometry.point_cloud_range, geometry.voxel_size):
        raise ConfigError(
            f"{file} sees the range and voxels {theirs}, the student "
            f"{(geometry.point_cloud_range, geometry.voxel_size)}; they share their voxels, so both must be equal"
        )
