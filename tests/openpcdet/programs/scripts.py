"""Run its own ``tools/*.py`` on a small SECOND: ``scripts.py CHECKOUT DATA FOLDER SCRIPT ARGUMENTS...``.

Configuration and output lie under FOLDER.
"""

from __future__ import annotations

import os
import runpy
import sys
import time
from pathlib import Path

import cakdp_ext  # noqa: F401  (CAKDP_OPENPCDET_CPU=1 says the rest)


def write_config(checkout, data, folder):
    """Its SECOND on a smaller range, with a shallow 2D backbone."""
    import yaml

    config = yaml.safe_load((checkout / "tools/cfgs/kitti_models/second.yaml").read_text())
    config["DATA_CONFIG"].update(DATA_PATH=str(data), POINT_CLOUD_RANGE=[0, -12.8, -3, 25.6, 12.8, 1])
    config["MODEL"]["BACKBONE_2D"]["LAYER_NUMS"] = [1, 1]
    config["MODEL"]["POST_PROCESSING"]["SCORE_THRESH"] = 0.05
    target = folder / "cfgs" / "kitti_models" / "small.yaml"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(yaml.safe_dump(config))
    bases = folder / "cfgs" / "dataset_configs"
    if not bases.exists():
        bases.symlink_to(checkout / "tools" / "cfgs" / "dataset_configs", target_is_directory=True)


def run(checkout, folder, script, arguments):
    from pcdet.config import cfg

    cfg.ROOT_DIR = folder
    time.sleep = lambda _: None  # its evaluation waits half a minute for a checkpoint that will not come
    sys.modules.pop("test", None)
    sys.path.insert(0, str(checkout / "tools"))
    sys.argv = [script, "--cfg_file", "cfgs/kitti_models/small.yaml", *arguments]
    runpy.run_path(str(checkout / "tools" / script), run_name="__main__")


if __name__ == "__main__":
    root, data, folder = (Path(argument).resolve() for argument in sys.argv[1:4])
    if os.environ.get("LOCAL_RANK", "0") == "0":
        write_config(root, data, folder)
    while not (folder / "cfgs" / "dataset_configs").exists():
        time.sleep(0.1)
    os.chdir(folder)
    run(root, folder, sys.argv[4], sys.argv[5:])
