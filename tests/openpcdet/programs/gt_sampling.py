"""Load its KITTI data set with ground-truth sampling, in workers: ``gt_sampling.py CHECKOUT DATA``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import cakdp_ext  # noqa: F401  (CAKDP_OPENPCDET_CPU=1 says the rest)


def main(checkout, data):
    import numpy as np
    from easydict import EasyDict
    from pcdet.config import cfg_from_yaml_file
    from pcdet.datasets import KittiDataset
    from pcdet.utils.common_utils import create_logger
    from torch.utils.data import DataLoader

    os.chdir(Path(checkout) / "tools")
    config = cfg_from_yaml_file("cfgs/kitti_models/second.yaml", EasyDict(ROOT_DIR=Path(checkout), LOCAL_RANK=0))
    dataset = KittiDataset(config.DATA_CONFIG, config.CLASS_NAMES, True, Path(data), create_logger())
    labelled = sum(int(np.isin(info["annos"]["name"], config.CLASS_NAMES).sum()) for info in dataset.kitti_infos)
    for method in ("fork", "spawn"):
        np.random.seed(0)  # noqa: NPY002 (OpenPCDet draws from NumPy's global generator)
        loader = DataLoader(dataset, 4, num_workers=1, collate_fn=dataset.collate_batch, multiprocessing_context=method)
        boxes = voxels = 0
        for batch in loader:
            boxes += int((batch["gt_boxes"][..., 7] > 0).sum())
            voxels += len(batch["voxels"])
        result = {"method": method, "frames": len(dataset), "labelled": labelled, "boxes": boxes, "voxels": voxels}
        print("RESULT " + json.dumps(result), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
