"""Models of OpenPCDet's own YAMLs, made so small that a forward takes a fraction of a second, and frames for them.

Only for programs in which OpenPCDet runs already, see ``test_inside_openpcdet.py``.
"""

from __future__ import annotations

import os
import sys
import types
from contextlib import suppress
from copy import deepcopy
from pathlib import Path

import numpy as np
import pcdet
import torch
from easydict import EasyDict
from pcdet.datasets import DatasetTemplate
from pcdet.models import dense_heads, detectors

from cakdp_ext.config import load_config, merge
from cakdp_ext.openpcdet.batches import to_batch
from cakdp_ext.openpcdet.faces import with_faces

CHECKOUT = Path(os.environ.get("OPENPCDET_ROOT") or Path(pcdet.__file__).parents[1])
CLASSES = ["Car", "Pedestrian", "Cyclist"]
SIZES = {"Car": (3.9, 1.6, 1.56), "Pedestrian": (0.8, 0.6, 1.73), "Cyclist": (1.76, 0.6, 1.73)}
RANGE, VOXEL, STRIDE = [0, -6.4, -3, 12.8, 6.4, 1], [0.2, 0.2, 0.1], 8
NUM_CELLS = 64

DATA = {
    "POINT_CLOUD_RANGE": RANGE,
    "POINT_FEATURE_ENCODING": {
        "encoding_type": "absolute_coordinates_encoding",
        "used_feature_list": ["x", "y", "z", "intensity"],
        "src_feature_list": ["x", "y", "z", "intensity"],
    },
    "DATA_AUGMENTOR": {"DISABLE_AUG_LIST": [], "AUG_CONFIG_LIST": []},
    "DATA_PROCESSOR": [
        {"NAME": "mask_points_and_boxes_outside_range", "REMOVE_OUTSIDE_BOXES": True},
        {
            "NAME": "transform_points_to_voxels",
            "VOXEL_SIZE": VOXEL,
            "MAX_POINTS_PER_VOXEL": 5,
            "MAX_NUMBER_OF_VOXELS": {"train": 4000, "test": 4000},
        },
    ],
}
NARROW = {"LAYER_NUMS": [1, 1], "NUM_FILTERS": [16, 16], "NUM_UPSAMPLE_FILTERS": [16, 16]}
LAYERS = {"SHARED_FC": [16, 16], "CLS_FC": [16, 16], "REG_FC": [16, 16], "IOU_FC": [16, 16]}
PROPOSALS = {"NMS_CONFIG": {"TEST": {"NMS_POST_MAXSIZE": 20, "SCORE_THRESH": 0.0}}}
CENTER = {
    "CLASS_NAMES_EACH_HEAD": [CLASSES],
    "SHARED_CONV_CHANNEL": 16,
    "POST_PROCESSING": {
        "SCORE_THRESH": 0.0,
        "MAX_OBJ_PER_SAMPLE": NUM_CELLS,
        "POST_CENTER_LIMIT_RANGE": [-99] * 3 + [99] * 3,
    },
}
FOUR_FEATURES = {"PFE": {"SA_LAYER": {"raw_points": {"NUM_REDUCED_CHANNELS": 1}}}}
"""For PV-RCNN++ of Waymo's points, which have five features."""
POOLS = {
    "VoxelRCNNHead": {"ROI_GRID_POOL": {"GRID_SIZE": 3}},
    "PVRCNNHead": {"ROI_GRID_POOL": {"GRID_SIZE": 3}},
    "SECONDHead": {"ROI_GRID_POOL": {"GRID_SIZE": 3, "IN_CHANNEL": 32}},
    "PartA2FCHead": {"ROI_AWARE_POOL": {"POOL_SIZE": 4}},
}


def stock(name, changes=None):
    """Read ``MODEL`` of one of OpenPCDet's YAMLs and make it small; ``changes`` come last."""
    tools = CHECKOUT / "tools"
    model = load_config(tools / "cfgs" / f"{name}.yaml", search=[tools])["MODEL"]
    small = {"BACKBONE_2D": NARROW} if "BACKBONE_2D" in model else {}
    head = model.get("DENSE_HEAD", {})
    if "ANCHOR_GENERATOR_CONFIG" in head:
        anchors = load_config(tools / "cfgs/kitti_models/second.yaml", search=[tools]).MODEL.DENSE_HEAD
        small["DENSE_HEAD"] = {"ANCHOR_GENERATOR_CONFIG": anchors.ANCHOR_GENERATOR_CONFIG}
    elif head:
        small["DENSE_HEAD"] = CENTER
    if "ROI_HEAD" in model:
        layers = {name: value for name, value in LAYERS.items() if name in model.ROI_HEAD}
        small["ROI_HEAD"] = {**layers, **PROPOSALS, **POOLS.get(model.ROI_HEAD.NAME, {})}
    if "PFE" in model:
        small["PFE"] = {"NUM_KEYPOINTS": 96}
    return EasyDict(merge(merge(model, small), changes or {}))


def dataset(training=True, classes=CLASSES):
    """Give the template of all of OpenPCDet's data sets, which has no frames of its own."""
    return DatasetTemplate(EasyDict(deepcopy(DATA)), list(classes), training, Path())


def frame(seed, num_objects=5):
    """Give points in and around random objects of every class."""
    rng = np.random.default_rng(seed)
    names = np.array([CLASSES[i % 3] for i in range(num_objects)])
    boxes = np.zeros((num_objects, 7), np.float32)
    boxes[:, :3] = rng.uniform([1, -5, -1.5], [11, 5, -0.5], (num_objects, 3))
    boxes[:, 3:6] = [SIZES[name] for name in names]
    boxes[:, 6] = rng.uniform(-3, 3, num_objects)
    within = [box[:3] + rng.uniform(-0.4, 0.4, (60, 3)) * box[3:6] for box in boxes]
    around = rng.uniform(RANGE[:3], RANGE[3:], (600, 3))
    xyz = np.concatenate([*within, around])
    points = np.concatenate([xyz, rng.uniform(0, 1, (len(xyz), 1))], axis=1).astype(np.float32)
    return {"points": points, "gt_names": names, "gt_boxes": boxes, "frame_id": f"{seed:06d}"}


def batch(*seeds, training=True, objects=5):
    """Collate frames as OpenPCDet does and give our batch of them."""
    source = dataset(training)
    np.random.seed(0)  # noqa: NPY002 (OpenPCDet draws from NumPy's global generator)
    return to_batch(source.collate_batch([source.prepare_data(frame(seed, objects)) for seed in seeds or (1, 2)]))


def build(model, training=True, seed=0):
    """Build a model of a configuration, with our faces, and give its norms statistics of their own."""
    torch.manual_seed(seed)
    detector = with_faces(detectors.__all__[model.NAME])
    built = detector(model_cfg=deepcopy(model), num_class=len(CLASSES), dataset=dataset(training))
    shake(built)
    return built


def shake(model):
    """Give norms other statistics than 0 and 1, and class outputs other biases than one for all."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)


def center_head(classes_each_head=None, name="CenterHead", channels=8, **changes):
    """Build a center head alone, over a map of 8 x 8 cells."""
    config = stock("waymo_models/centerpoint").DENSE_HEAD
    config = EasyDict(merge(config, {"CLASS_NAMES_EACH_HEAD": classes_each_head or [CLASSES], **changes}))
    torch.manual_seed(0)
    source = dataset()
    head = dense_heads.__all__[name](
        model_cfg=config,
        input_channels=channels,
        num_class=len(CLASSES),
        class_names=CLASSES,
        grid_size=source.grid_size,
        point_cloud_range=source.point_cloud_range,
        voxel_size=source.voxel_size,
        predict_boxes_when_training=False,
    )
    shake(head)
    return head


def provide_scatter():
    """Stand in for the one function of torch_scatter that dynamic voxels need, where that is not installed."""
    try:
        import torch_scatter  # noqa: F401
    except ImportError:
        module = types.ModuleType("torch_scatter")
        module.scatter_mean = _scatter_mean
        sys.modules["torch_scatter"] = module
        with suppress(ImportError):  # 0.5.2 has none
            from pcdet.models.backbones_3d.vfe import dynamic_mean_vfe

            dynamic_mean_vfe.torch_scatter = module


def _scatter_mean(values, index, dim):
    sums = values.new_zeros(int(index.max()) + 1, values.shape[1]).index_add(dim, index, values)
    return sums / torch.bincount(index)[:, None]
