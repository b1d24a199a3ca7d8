"""The anchor head's contract: anchors a class, maps and targets in ``forward_ret_dict``, losses on demand."""

from torch import nn

from cakdp_ext.config import from_node
from cakdp_ext.detectors import dense_heads as builtin
from cakdp_ext.detectors.registry import upper_keys
from cakdp_ext.openpcdet.batches import to_batch
from cakdp_ext.types import LidarGeometry

from .center_head import CenterHead

MAPS = {"cls_preds": "conv_cls", "box_preds": "conv_box", "dir_cls_preds": "conv_dir_cls"}


class AnchorHeadSingle(nn.Module):
    def __init__(
        self, model_cfg, input_channels, num_class, class_names, grid_size, point_cloud_range,
        predict_boxes_when_training=True, voxel_size=None, **_,
    ):  # fmt: skip
        super().__init__()
        self.model_cfg, self.num_class, self.class_names = model_cfg, num_class, class_names
        self.predict_boxes_when_training = predict_boxes_when_training
        node = {key: value for key, value in upper_keys(model_cfg).items() if key not in ("NAME", "IOU_HEAD")}
        geometry = LidarGeometry(tuple(round(float(v), 4) for v in point_cloud_range), tuple(voxel_size))
        head = builtin.AnchorHeadSingle(
            from_node(builtin.AnchorHeadConfig, node, "DENSE_HEAD"), input_channels, class_names, geometry
        )
        self._builtin = (head,)  # in a tuple it is no submodule
        self.conv_cls, self.conv_box, self.conv_dir_cls = head.conv_cls, head.conv_box, head.conv_dir_cls
        self.num_anchors_per_location = head.num_per_cell
        height, width = head.anchors.shape[:2]
        self.anchors = list(head.anchors.view(1, height, width, num_class, 1, 2, 7).split(1, dim=3))
        self.anchors = [each.squeeze(3) for each in self.anchors]
        self.forward_ret_dict = {}

    def forward(self, data_dict):
        bev, kept = data_dict["spatial_features_2d"], self.forward_ret_dict
        for name, conv in MAPS.items():
            kept[name] = getattr(self, conv)(bev).permute(0, 2, 3, 1).contiguous()
        if self.training:
            kept["batch"] = to_batch(data_dict)
        if not self.training or self.predict_boxes_when_training:
            found = self.generate_predicted_boxes(data_dict["batch_size"], *(kept[name] for name in MAPS))
            data_dict["batch_cls_preds"], data_dict["batch_box_preds"] = found
            data_dict["cls_preds_normalized"] = False
        return data_dict

    def _output(self, maps):
        head = self._builtin[0]
        size = len(maps["cls_preds"])
        return builtin.HeadOutput(
            *(maps[name].reshape(size, head.anchors.shape[:3].numel(), -1).float() for name in MAPS)
        )

    def generate_predicted_boxes(self, batch_size, cls_preds, box_preds, dir_cls_preds=None):
        found = self._builtin[0].decode(
            self._output(dict(zip(MAPS, (cls_preds, box_preds, dir_cls_preds), strict=True)))
        )
        return found.cls_logits, found.boxes

    def get_loss(self):
        losses = self._builtin[0].losses(self._output(self.forward_ret_dict), self.forward_ret_dict["batch"])
        return sum(losses.values()), {f"rpn_{name}": value.item() for name, value in losses.items()}


__all__ = {"AnchorHeadSingle": AnchorHeadSingle, "CenterHead": CenterHead}
