"""Make KITTI's infos and object database with OpenPCDet's own function: ``make_infos.py CHECKOUT DATA``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import cakdp_ext  # noqa: F401  (CAKDP_OPENPCDET_CPU=1 says the rest)


def main(checkout, data):
    from easydict import EasyDict
    from pcdet.config import cfg_from_yaml_file
    from pcdet.datasets.kitti import kitti_dataset

    os.chdir(Path(checkout) / "tools")
    config = cfg_from_yaml_file("cfgs/dataset_configs/kitti_dataset.yaml", EasyDict())
    kitti_dataset.Path = Path  # 0.5.2 has it only where the module is run as a program
    kitti_dataset.create_kitti_infos(config, ["Car", "Pedestrian", "Cyclist"], Path(data), Path(data), workers=2)


if __name__ == "__main__":
    main(*sys.argv[1:])
