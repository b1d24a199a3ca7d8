"""What OpenPCDet's loops call."""

from collections import namedtuple

import numpy as np
import torch

from . import dense_heads, detectors

ModelReturn = namedtuple("ModelReturn", ["loss", "tb_dict", "disp_dict"])


def build_network(model_cfg, num_class, dataset):
    return detectors.__all__[model_cfg.NAME](model_cfg=model_cfg, num_class=num_class, dataset=dataset)


def load_data_to_gpu(batch_dict):
    for key, value in batch_dict.items():
        if isinstance(value, np.ndarray) and key not in ("frame_id", "calib", "metadata"):
            batch_dict[key] = torch.from_numpy(value).float()


def model_fn_decorator():
    def step(model, batch_dict):
        load_data_to_gpu(batch_dict)
        losses, logged, shown = model(batch_dict)
        getattr(model, "module", model).update_global_step()
        return ModelReturn(losses["loss"].mean(), logged, shown)

    return step


__all__ = ["build_network", "dense_heads", "detectors", "load_data_to_gpu", "model_fn_decorator"]
