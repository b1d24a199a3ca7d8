"""A detector of OpenPCDet's for our engine: built without its data set, scored, cut and measured outside its loops."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from easydict import EasyDict
from pcdet.models import detectors
from torch import nn

from cakdp_ext.config import ConfigError
from cakdp_ext.openpcdet.faces import with_faces
from cakdp_ext.openpcdet.registration import register_all
from cakdp_ext.types import LidarGeometry

LOG = logging.getLogger("cakdp_ext")


def build_detector(model_cfg: Mapping[str, Any], class_names: Sequence[str], geometry: LidarGeometry) -> nn.Module:
    """Build the full network that MODEL describes, with fresh weights; whoever calls cuts and teaches it.

    It is on the GPU where there is one: OpenPCDet's heads keep their anchors there whatever becomes of the network, so
    that it can be traced nowhere else.

    Args:
        model_cfg: MODEL's mapping; never changed.
        class_names: classes by label.
        geometry: range and voxel grid of the points.

    Raises:
        ConfigError: for a detector that OpenPCDet does not know.
    """
    register_all()
    tree = EasyDict({key: deepcopy(value) for key, value in model_cfg.items() if key not in ("PRUNING", "DISTILL")})
    known = detectors.__all__
    if tree.get("NAME") not in known:
        raise ConfigError(f"OpenPCDet has no detector {tree.get('NAME')!r}; it has {', '.join(known)}")
    dataset = as_dataset(class_names, geometry)
    detector = known[tree.NAME]
    if tree.get("WIDTH") and not getattr(detector, "is_student", False):
        raise ConfigError(
            f"MODEL.WIDTH: {tree.NAME} is OpenPCDet's own, which passes over that; use MODEL.NAME: SECONDNetCaKDP or "
            "CenterPointCaKDP"
        )
    model: nn.Module = with_faces(detector)(model_cfg=tree, num_class=len(class_names), dataset=dataset)
    return model.cuda() if torch.cuda.is_available() else model


def build_in_training(config: Mapping[str, Any], geometry: LidarGeometry, ckpt: str | Path | None = None) -> nn.Module:
    """Build the detector as OpenPCDet's training starts it: cut, and with its teacher.

    Args:
        config: the whole configuration, with absolute paths; ``MODEL.PRUNING``, where there is one, names its plan.
        geometry: range and voxel grid of the points.
        ckpt: weights to go on from; None for those that the training starts with.

    Returns:
        The detector in training mode, with our faces.

    Raises:
        ConfigError, CheckpointError: where MODEL, weights or teacher do not fit.
    """
    register_all()
    dataset = as_dataset(config["CLASS_NAMES"], geometry)
    dataset.training = True
    detector = with_faces(detectors.__all__[config["MODEL"]["NAME"]])
    model: Any = detector(model_cfg=deepcopy(config["MODEL"]), num_class=len(dataset.class_names), dataset=dataset)
    if ckpt is not None:
        model.load_params_from_file(filename=str(ckpt), logger=LOG, to_cpu=True)
    network: nn.Module = model.cuda() if torch.cuda.is_available() else model
    return network.train()


def as_dataset(class_names: Sequence[str], geometry: LidarGeometry) -> SimpleNamespace:
    """Give what OpenPCDet's detectors read from their data set when they are built."""
    return SimpleNamespace(
        class_names=list(class_names),
        training=False,
        point_feature_encoder=SimpleNamespace(num_point_features=geometry.num_point_features),
        grid_size=np.array(geometry.grid_size),
        point_cloud_range=np.array(geometry.point_cloud_range, dtype=np.float32),
        voxel_size=list(geometry.voxel_size),
        depth_downsample_factor=None,
    )
