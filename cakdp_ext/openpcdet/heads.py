"""Dense heads of OpenPCDet's with an IoU branch."""

from __future__ import annotations

from typing import Any

import torch
from pcdet.models.dense_heads import AnchorHeadSingle
from torch import Tensor, nn

from cakdp_ext.config import ConfigError, from_node
from cakdp_ext.openpcdet.dense import anchors_of, decode
from cakdp_ext.refinement import IoUHeadConfig, anchor_branch_loss


class AnchorHeadSingleIoU(AnchorHeadSingle):
    """An anchor head that also predicts, for every anchor and class, how well it overlaps an object.

    In evaluation it adds ``batch_iou_logits (B, A, C)`` to the batch.

    Source: CaKDP (Zhang et al., CVPR 2024), section 3.4.
    """

    def __init__(self, model_cfg: Any, input_channels: int, num_class: int, **kwargs: Any) -> None:
        super().__init__(model_cfg=model_cfg, input_channels=input_channels, num_class=num_class, **kwargs)
        if model_cfg.get("CLASS_AGNOSTIC"):
            raise ConfigError("an IoU branch predicts one IoU a class; set CLASS_AGNOSTIC: False")
        self.iou_config = from_node(IoUHeadConfig, model_cfg.get("IOU_HEAD"), "MODEL.DENSE_HEAD.IOU_HEAD")
        self.conv_iou = nn.Conv2d(input_channels, self.num_anchors_per_location * num_class, 1)
        self.conv_iou.bias.data.fill_(self.conv_cls.bias[0].item())  # type: ignore[union-attr]

    def forward(self, data_dict: dict[str, Any]) -> dict[str, Any]:
        """Run the head on ``spatial_features_2d``; in training ``get_loss`` then knows the objects."""
        data_dict = super().forward(data_dict)
        kept = self.forward_ret_dict
        kept["iou_preds"] = self.conv_iou(data_dict["spatial_features_2d"]).permute(0, 2, 3, 1).contiguous()
        if self.training:
            kept["gt_boxes"] = data_dict["gt_boxes"]
        else:
            data_dict["batch_iou_logits"] = kept["iou_preds"].reshape(len(kept["iou_preds"]), -1, self.num_class)
        return data_dict

    def get_loss(self) -> tuple[Tensor, dict[str, float]]:
        """Add the IoU loss (Eq. 6) to the head's own."""
        loss, logged = super().get_loss()
        kept = self.forward_ret_dict
        logits = kept["iou_preds"].reshape(len(kept["iou_preds"]), -1, self.num_class)
        with torch.autocast(logits.device.type, enabled=False):
            iou_loss = anchor_branch_loss(
                self.iou_config,
                logits.float(),
                anchors_of(self),
                lambda: decode(self, kept).boxes,
                kept["gt_boxes"][..., :7].float(),
                kept["gt_boxes"][..., -1].long() - 1,
            )
        return loss + iou_loss, {**logged, "iou_loss": iou_loss.item()}
