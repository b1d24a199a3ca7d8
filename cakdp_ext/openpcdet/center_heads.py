"""OpenPCDet's center head with an IoU branch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pcdet.models.dense_heads import CenterHead
from pcdet.models.dense_heads.center_head import SeparateHead
from torch import Tensor, nn

from cakdp_ext.config import ConfigError, from_node
from cakdp_ext.openpcdet.dense import boxes_of_parts, cells_of, classes_of
from cakdp_ext.refinement import CenterIoUHeadConfig, IoURefinement, center_branch_loss, refine_scores, start_from_prior


class CenterHeadIoU(CenterHead):
    """A center head that also predicts, for every cell and class, how well its box overlaps an object.

    The branch of each part is called ``iou`` and has one map a class of that part; what OpenPCDet itself does with maps
    of that name does not happen here.

    Args:
        model_cfg: DENSE_HEAD's mapping, with IOU_HEAD.
        input_channels: of the bird's-eye-view features.
        args: as of CenterHead.
        kwargs: as of CenterHead.

    Attributes:
        iou_refinement: what the predicted IoU does in evaluation, before top-k and NMS; nothing until a detector that
            has ``POST_PROCESSING.IOU_REFINEMENT`` says so.

    Raises:
        ConfigError: where DENSE_HEAD also asks for OpenPCDet's own IoU branch.

    Source: CaKDP (Zhang et al., CVPR 2024), section 3.4.
    """

    class_names_each_head: list[list[str]]
    forward_ret_dict: dict[str, Any]

    def __init__(self, model_cfg: Any, input_channels: int, *args: Any, **kwargs: Any) -> None:
        _refuse_other_branch(model_cfg)
        super().__init__(model_cfg, input_channels, *args, **kwargs)
        self.iou_config = from_node(CenterIoUHeadConfig, model_cfg.get("IOU_HEAD"), "MODEL.DENSE_HEAD.IOU_HEAD")
        self.iou_refinement = IoURefinement(mode="none")
        for part, classes in zip(self.heads_list, self.class_names_each_head, strict=True):
            part.sep_head_dict["iou"] = {"out_channels": len(classes), "num_conv": 2}
            part.iou = _branch(model_cfg, part.sep_head_dict["iou"], self.shared_conv)

    def forward(self, data_dict: dict[str, Any]) -> dict[str, Any]:
        """Run the head on ``spatial_features_2d``; in training ``get_loss`` then knows the objects."""
        if self.training:
            self.forward_ret_dict["gt_boxes"] = data_dict["gt_boxes"]
        return super().forward(data_dict)

    def assign_targets(self, gt_boxes: Tensor, *args: Any, **kwargs: Any) -> dict[str, list[Any]]:
        """Assign targets as :func:`assign_by_part` does."""
        return assign_by_part(self, super().assign_targets, gt_boxes, *args, **kwargs)

    def get_loss(self) -> tuple[Tensor, dict[str, float]]:
        """Add the IoU loss (Eq. 6) to the head's own."""
        kept = self.forward_ret_dict
        iou_loss = self._iou_loss(kept["pred_dicts"], kept["gt_boxes"])
        self.forward_ret_dict = {**kept, "pred_dicts": [_without_iou(maps) for maps in kept["pred_dicts"]]}
        loss, logged = super().get_loss()
        self.forward_ret_dict = kept
        return loss + iou_loss, {**logged, "iou_loss": iou_loss.item()}

    def _iou_loss(self, maps: Sequence[Mapping[str, Tensor]], objects: Tensor) -> Tensor:
        classes = classes_of(self)
        with torch.autocast(objects.device.type, enabled=False):
            return center_branch_loss(
                self.iou_config,
                classes.join([part["iou"] for part in maps]),
                cells_of(self, maps[0]["hm"]),
                lambda: classes.boxes_of_classes(boxes_of_parts(self, maps)),
                objects[..., :7].float(),
                objects[..., -1].long() - 1,
            )

    def generate_predicted_boxes(self, batch_size: int, pred_dicts: Sequence[Mapping[str, Tensor]]) -> list[Any]:
        """Let the IoU branch mask or rescore each part's cells, then detect as OpenPCDet does."""
        refined = [{**_without_iou(maps), "hm": refine_heatmap(maps, self.iou_refinement)} for maps in pred_dicts]
        found: list[Any] = super().generate_predicted_boxes(batch_size, refined)
        return [_above_zero(frame) for frame in found] if self.iou_refinement.mode == "mask" else found


def assign_by_part(
    head: Any, assign: Callable[..., Mapping[str, list[Any]]], gt_boxes: Tensor, *args: Any, **kwargs: Any
) -> dict[str, list[Any]]:
    """Let a CenterHead assign targets part by part, each on a copy of the objects.

    OpenPCDet writes a part's own labels into what it is given, and its next part reads those.

    Args:
        head: whose parts they are.
        assign: its ``assign_targets``.
        gt_boxes: ``(B, M, 7 + C + 1)``, 1-based label last; stays as it is.
        args: of ``assign``.
        kwargs: of ``assign``.

    Returns:
        What ``assign`` gives: lists with an entry for each part.
    """
    classes = head.class_names_each_head
    targets: dict[str, list[Any]] = defaultdict(list)
    try:
        for names in classes:
            head.class_names_each_head = [names]
            for key, values in assign(gt_boxes.clone(), *args, **kwargs).items():
                targets[key] += values
    finally:
        head.class_names_each_head = classes
    return dict(targets)


def refine_heatmap(maps: Mapping[str, Tensor], settings: IoURefinement) -> Tensor:
    """Apply the predicted IoU to the cells of one part of a center head.

    Args:
        maps: with ``hm`` and ``iou (B, C, H, W)``, raw.
        settings: what to do.

    Returns:
        ``(B, C, H, W)`` logits of the scores that go on; minus infinity for cells that are out.
    """
    if settings.mode == "none":
        return maps["hm"]
    shape = maps["hm"].permute(0, 2, 3, 1).shape
    samples, iou = (maps[name].permute(0, 2, 3, 1).reshape(-1, shape[3]) for name in ("hm", "iou"))
    scores, keep = refine_scores(samples.sigmoid(), iou.sigmoid(), settings)
    logits = scores.logit() if settings.mode == "rescore" else samples.masked_fill(~keep[:, None], -torch.inf)
    return logits.reshape(shape).permute(0, 3, 1, 2)


def _above_zero(frame: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop cells that are out, which OpenPCDet takes where fewer than top-k are left and no threshold is set."""
    keep = frame["pred_scores"] > 0
    return {name: values[keep] for name, values in frame.items()}


def _without_iou(maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: values for name, values in maps.items() if name != "iou"}


def _branch(model_cfg: Any, shape: dict[str, int], shared_conv: nn.Module) -> nn.Module:
    """Build the convolutions of a branch as those of the scores, which it is one of, with norms as before the parts."""
    bias = model_cfg.get("USE_BIAS_BEFORE_NORM", False)
    part = SeparateHead(model_cfg.SHARED_CONV_CHANNEL, {"hm": shape}, use_bias=bias)
    like = next(module for module in shared_conv.modules() if isinstance(module, nn.BatchNorm2d))
    for module in part.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps, module.momentum = like.eps, like.momentum
    start_from_prior(part.hm[-1])
    return part.hm


def _refuse_other_branch(model_cfg: Any) -> None:
    if "iou" in model_cfg.SEPARATE_HEAD_CFG.HEAD_DICT:
        raise ConfigError(
            "CenterHeadIoU brings its own IoU branch, but SEPARATE_HEAD_CFG.HEAD_DICT of MODEL.DENSE_HEAD has iou as "
            "well; take it out, or use CenterHead"
        )
    if model_cfg.POST_PROCESSING.get("USE_IOU_TO_RECTIFY_SCORE"):
        raise ConfigError(
            "USE_IOU_TO_RECTIFY_SCORE of MODEL.DENSE_HEAD belongs to OpenPCDet's own IoU branch; with CenterHeadIoU, "
            "set MODEL.POST_PROCESSING.IOU_REFINEMENT: {MODE: rescore}"
        )
