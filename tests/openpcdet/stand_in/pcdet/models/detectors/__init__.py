"""The detectors' contract: modules that hand a ``batch_dict`` on, losses, post-processing, lenient loading."""

import os

import torch
from torch import nn

from cakdp_ext.config import from_node
from cakdp_ext.detectors import backbones_2d, backbones_3d, map_to_bev, voxel_features
from cakdp_ext.detectors.backbones_3d import BackboneFeatures
from cakdp_ext.detectors.post_processing import PostProcessingConfig, select, select_labelled
from cakdp_ext.detectors.registry import upper_keys
from cakdp_ext.detectors.roi_heads import VoxelRCNNHead as BuiltInRoIHead
from cakdp_ext.openpcdet.batches import to_batch
from cakdp_ext.types import DensePredictions, LidarGeometry

from .. import dense_heads


def configured(cls, model_cfg, section):
    node = {key: value for key, value in upper_keys(model_cfg[section]).items() if key != "NAME"}
    return from_node(cls.Config, node, section)


class MeanVFE(voxel_features.MeanVFE):
    def forward(self, batch_dict):
        batch_dict["voxel_features"] = super().forward(batch_dict["voxels"], batch_dict["voxel_num_points"])
        return batch_dict


class VoxelBackBone8x(backbones_3d.VoxelBackBone8x):
    def forward(self, batch_dict):
        found = super().forward(batch_dict["voxel_features"], batch_dict["voxel_coords"], batch_dict["batch_size"])
        batch_dict["encoded_spconv_tensor"], batch_dict["multi_scale_3d_features"] = found.encoded, found.multi_scale
        strides = dict(found.strides)
        batch_dict["encoded_spconv_tensor_stride"] = strides.pop("encoded")
        batch_dict["multi_scale_3d_strides"] = strides
        return batch_dict


class HeightCompression(map_to_bev.HeightCompression):
    def forward(self, batch_dict):
        batch_dict["spatial_features"] = super().forward(batch_dict["encoded_spconv_tensor"])
        return batch_dict


class BaseBEVBackbone(backbones_2d.BaseBEVBackbone):
    def forward(self, batch_dict):
        batch_dict["spatial_features_2d"] = super().forward(batch_dict["spatial_features"])
        return batch_dict


class VoxelRCNNHead(BuiltInRoIHead):
    def __init__(self, model_cfg, channels, geometry):
        super().__init__(configured(BuiltInRoIHead, model_cfg, "ROI_HEAD"), channels, geometry)
        self.num_class = 1
        for name, layer in model_cfg.ROI_HEAD.ROI_GRID_POOL.POOL_LAYERS.items():
            layer.MLPS = [[channels[name], *widths] for widths in layer.MLPS]  # as the real one does
        self.forward_ret_dict = None

    def forward(self, batch_dict):
        features = batch_dict["multi_scale_3d_features"]
        backbone = BackboneFeatures(None, features, batch_dict["multi_scale_3d_strides"])
        found = None
        if batch_dict.get("rois") is None:
            found = self.propose(DensePredictions(batch_dict["batch_cls_preds"], batch_dict["batch_box_preds"]))
            batch_dict.update(rois=found.rois, roi_scores=found.scores, roi_labels=found.labels + 1)
            batch_dict["has_class_labels"] = True
        if self.training:
            targets = self.sample(found, to_batch(batch_dict))
            self.forward_ret_dict = (super().forward(backbone, targets.rois), targets)
            return batch_dict
        output = super().forward(backbone, batch_dict["rois"])
        batch_dict["batch_cls_preds"] = output.cls_logits
        batch_dict["batch_box_preds"] = self.decode(output, batch_dict["rois"])
        batch_dict["cls_preds_normalized"] = False
        return batch_dict

    def get_loss(self, logged):
        losses = self.losses(*self.forward_ret_dict)
        return sum(losses.values()), {**logged, **{name: value.item() for name, value in losses.items()}}


class Detector3DTemplate(nn.Module):
    def __init__(self, model_cfg, num_class, dataset):
        super().__init__()
        self.model_cfg, self.num_class, self.dataset = model_cfg, num_class, dataset
        self.class_names = dataset.class_names
        self.register_buffer("global_step", torch.zeros(1, dtype=torch.long))
        for name in (
            "vfe",
            "backbone_3d",
            "map_to_bev_module",
            "pfe",
            "backbone_2d",
            "dense_head",
            "point_head",
            "roi_head",
        ):
            self.add_module(name, None)
        self.module_list = self._build()

    def _build(self):
        cfg, source = self.model_cfg, self.dataset
        ranges = tuple(round(float(value), 4) for value in source.point_cloud_range)
        geometry = LidarGeometry(ranges, tuple(source.voxel_size), source.point_feature_encoder.num_point_features)
        self.vfe = MeanVFE(configured(MeanVFE, cfg, "VFE"), geometry)
        self.backbone_3d = VoxelBackBone8x(
            configured(VoxelBackBone8x, cfg, "BACKBONE_3D"), self.vfe.num_features, geometry
        )
        channels, heights = self.backbone_3d.channels, self.backbone_3d.num_heights
        to_bev = configured(HeightCompression, cfg, "MAP_TO_BEV")
        self.map_to_bev_module = HeightCompression(to_bev, channels["encoded"], heights)
        backbone = configured(BaseBEVBackbone, cfg, "BACKBONE_2D")
        self.backbone_2d = BaseBEVBackbone(backbone, self.map_to_bev_module.num_bev_features)
        self.dense_head = dense_heads.__all__[cfg.DENSE_HEAD.NAME](
            model_cfg=cfg.DENSE_HEAD, input_channels=self.backbone_2d.num_bev_features, num_class=self.num_class,
            class_names=self.class_names, grid_size=source.grid_size, point_cloud_range=source.point_cloud_range,
            predict_boxes_when_training=bool(cfg.get("ROI_HEAD")), voxel_size=source.voxel_size,
        )  # fmt: skip
        modules = [self.vfe, self.backbone_3d, self.map_to_bev_module, self.backbone_2d, self.dense_head]
        if cfg.get("ROI_HEAD"):
            self.roi_head = VoxelRCNNHead(cfg, channels, geometry)
            modules.append(self.roi_head)
        return modules

    def update_global_step(self):
        self.global_step += 1

    def forward(self, batch_dict):
        for module in self.module_list:
            batch_dict = module(batch_dict)
        if not self.training:
            return self.post_processing(batch_dict)
        loss, logged, shown = self.get_training_loss()
        return {"loss": loss}, logged, shown

    def get_training_loss(self):
        loss, logged = self.dense_head.get_loss()
        if self.roi_head is not None:
            second, logged = self.roi_head.get_loss(logged)
            loss = loss + second
        return loss, {"loss_rpn": loss.item(), **logged}, {}

    def post_processing(self, batch_dict):
        config = {k: v for k, v in upper_keys(self.model_cfg.POST_PROCESSING).items() if k != "IOU_REFINEMENT"}
        config = from_node(PostProcessingConfig, config, "POST_PROCESSING")
        found = [self._of_frame(batch_dict, index, config) for index in range(batch_dict["batch_size"])]
        return found, {"gt": int((batch_dict["gt_boxes"][..., 7] > 0).sum())}

    def _of_frame(self, batch_dict, index, config):
        rows = batch_dict["batch_index"] == index if batch_dict.get("batch_index") is not None else index
        boxes, scores = batch_dict["batch_box_preds"][rows], batch_dict["batch_cls_preds"][rows]
        if not batch_dict["cls_preds_normalized"]:
            scores = scores.sigmoid()
        if batch_dict.get("has_class_labels"):
            labels, valid = batch_dict["roi_labels"][index] - 1, batch_dict["roi_scores"][index] > 0
            kept = select_labelled(boxes, scores.amax(dim=1), labels, valid, config)
        else:
            kept = select(boxes, scores, torch.ones(len(boxes), dtype=torch.bool), config)
        return {"pred_boxes": kept.boxes, "pred_scores": kept.scores, "pred_labels": kept.labels + 1}

    def _load_state_dict(self, model_state_disk, *, strict=True):
        own = self.state_dict()
        fitting = {k: v for k, v in model_state_disk.items() if k in own and own[k].shape == v.shape}
        self.load_state_dict(fitting if strict else {**own, **fitting})
        return own, fitting

    def load_params_from_file(self, filename, logger, to_cpu=False, pre_trained_path=None):
        if not os.path.isfile(filename):
            raise FileNotFoundError
        own, loaded = self._load_state_dict(torch.load(filename)["model_state"], strict=False)
        for key in own:
            if key not in loaded:
                logger.info(f"Not updated weight {key}: {own[key].shape}")

    def load_params_with_optimizer(self, filename, to_cpu=False, optimizer=None, logger=None):
        if not os.path.isfile(filename):
            raise FileNotFoundError
        content = torch.load(filename)
        self._load_state_dict(content["model_state"], strict=True)
        if optimizer is not None:
            optimizer.load_state_dict(content["optimizer_state"])
        return content.get("it", 0), content.get("epoch", -1)


class SECONDNet(Detector3DTemplate):
    pass


class VoxelRCNN(Detector3DTemplate):
    pass


class CenterPoint(Detector3DTemplate):
    pass


__all__ = {
    "Detector3DTemplate": Detector3DTemplate,
    "SECONDNet": SECONDNet,
    "VoxelRCNN": VoxelRCNN,
    "CenterPoint": CenterPoint,
}
