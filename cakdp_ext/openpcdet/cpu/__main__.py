"""Run a program of OpenPCDet on CPU, as ``python`` would run it.

python -m cakdp_ext.openpcdet.cpu -m pcdet.datasets.kitti.kitti_dataset create_kitti_infos tools/cfgs/...
python -m cakdp_ext.openpcdet.cpu demo.py --cfg_file cfgs/... --data_path ...
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from cakdp_ext.openpcdet.cpu import use_cpu


def main(arguments: list[str]) -> None:
    """Run ``[-m] NAME ARGUMENTS...``."""
    is_module = arguments[:1] == ["-m"]
    rest = arguments[1:] if is_module else arguments
    if not rest:
        raise SystemExit("usage: python -m cakdp_ext.openpcdet.cpu [-m MODULE | SCRIPT] ARGUMENTS...")
    use_cpu()
    sys.argv = rest
    if is_module:
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        return
    sys.path.insert(0, str(Path(rest[0]).resolve().parent))
    runpy.run_path(rest[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
