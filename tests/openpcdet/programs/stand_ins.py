"""Call ``use_cpu()`` before a made-up OpenPCDet and report what happens: ``stand_ins.py FOLDER``."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import sys
import types
from pathlib import Path

import numpy as np
import torch

PACKAGE = {
    "setup.py": "if True:\n    version = '7.8.9+%s' % 'abc'\n",
    "pcdet/__init__.py": "from .version import __version__\n",
    "pcdet/ops/__init__.py": "",
    "pcdet/ops/iou3d_nms/__init__.py": "from . import iou3d_nms_cuda\n",
    "pcdet/ops/bev_pool/__init__.py": "from . import bev_pool_ext\n",
    "pcdet/utils.py": "import av2.utils.io as io\nfrom kornia.losses import FocalLoss\nimport cv2\n",
    "pcdet/datasets/__init__.py": "",
    "pcdet/datasets/argo2/__init__.py": "",
    "pcdet/datasets/argo2/argo2_utils/__init__.py": "",
    "pcdet/datasets/argo2/argo2_utils/so3.py": "from kornia.geometry import conversions\nconversions.quat()\n",
    "others.py": "import av2\n",
    "cv2/__init__.py": "from . import part\nraise ImportError('libGL.so.1 is not there')\n",
    "cv2/part.py": "",
}
"""A checkout that asks for what OpenPCDet asks for; cv2 is there and broken, av2 and kornia are not."""


def write_package(folder):
    for name, text in PACKAGE.items():
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    sys.path.insert(0, str(folder))


def error_of(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:  # noqa: BLE001 (the tests say which they expect)
        return f"{type(error).__name__}: {error}"
    return "none"


def refusals(use_cpu):
    sys.modules["pcdet"] = types.ModuleType("pcdet")
    late = error_of(use_cpu)
    del sys.modules["pcdet"]
    is_available, torch.cuda.is_available = torch.cuda.is_available, lambda: True
    beside_cuda = error_of(use_cpu)
    torch.cuda.is_available = is_available
    return {"late": late, "beside_cuda": beside_cuda, "untouched": "CAKDP_OPENPCDET_CPU" not in os.environ}


def imports():
    from cakdp_ext.openpcdet.ops import iou3d_nms_cuda

    pcdet = importlib.import_module("pcdet")
    nms = importlib.import_module("pcdet.ops.iou3d_nms").iou3d_nms_cuda
    pool = importlib.import_module("pcdet.ops.bev_pool").bev_pool_ext
    names = importlib.import_module("pcdet.utils")
    so3 = importlib.import_module("pcdet.datasets.argo2.argo2_utils.so3")
    del sys.modules["av2"]
    return {
        "version": pcdet.__version__,
        "ours": nms.nms_gpu is iou3d_nms_cuda.nms_gpu and nms.__name__ == "pcdet.ops.iou3d_nms.iou3d_nms_cuda",
        "only_on_cuda": error_of(pool.bev_pool_forward, 1),
        "absent": error_of(names.io.read_feather, 1),
        "absent_class": error_of(names.FocalLoss),
        "broken": error_of(names.cv2.imread, 1),
        "broken_parts": [name for name in sys.modules if name.startswith("cv2.")],
        "broken_so3": error_of(so3.quat_to_yaw, 1),
        "others": error_of(importlib.import_module, "others"),
    }


def devices():
    module = torch.nn.Linear(2, 2)
    tensors = [module.weight.cuda(), module.weight.to("cuda:1"), module.weight.to(device=torch.device("cuda"))]
    made = torch.cuda.FloatTensor(3, 2).fill_(1)
    torch.cuda.set_device(3)
    torch.cuda.synchronize()
    before = torch.cuda.device_count()
    os.environ["LOCAL_WORLD_SIZE"] = "4"
    with torch.random.fork_rng():
        torch.rand(1)
    return {
        "types": sorted({str(tensor.device) for tensor in (*tensors, made, module.cuda().to("cuda").weight)}),
        "dtype": str(made.to(torch.float64).dtype),
        "int": str(torch.cuda.IntTensor(2, 2).dtype),
        "counts": [before, torch.cuda.device_count()],
        "available": torch.cuda.is_available(),
    }


def checkpoints(folder):
    """One with NumPy numbers in it, as adam_onecycle leaves them, and one whose tensors lay on a GPU."""
    torch.save({"lr": np.float64(0.5), "steps": np.int64(3)}, folder / "numbers.pth")
    tag, torch.serialization.location_tag = torch.serialization.location_tag, lambda _: "cuda:0"
    torch.save({"weight": torch.arange(3.0)}, folder / "gpu.pth")
    torch.save({"weight": torch.arange(3.0)}, folder / "old.pth", _use_new_zipfile_serialization=False)
    torch.serialization.location_tag = tag
    loaded = [torch.load(folder / name, weights_only=True)["weight"] for name in ("gpu.pth", "old.pth")]
    return {
        "numbers": {key: float(value) for key, value in torch.load(folder / "numbers.pth").items()},
        "weights": [weight.tolist() for weight in loaded],
        "numpy": [vars(np)["int"] is int, vars(np)["float"] is float],
    }


def distributed(folder):
    """One process asks for NCCL and for a GPU."""
    import torch.distributed as dist

    store = dist.FileStore(str(folder / "store"), 1)
    dist.init_process_group(backend="nccl", store=store, rank=0, world_size=1)
    wrapped = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 1), device_ids=[0])
    wrapped(torch.ones(1, 2)).sum().backward()
    result = {"backend": dist.get_backend(), "gradient": wrapped.module.weight.grad.tolist()}
    dist.destroy_process_group()
    return result


def children():
    """What a worker finds that imports OpenPCDet and nothing of ours."""
    return {method: multiprocessing.get_context(method).Pool(1).apply(ask_for_op) for method in ("fork", "spawn")}


def ask_for_op():
    return importlib.import_module("pcdet.ops.iou3d_nms.iou3d_nms_cuda").nms_gpu.__module__


def main(folder):
    from cakdp_ext.openpcdet import use_cpu

    write_package(folder)
    result = {"refusals": refusals(use_cpu)}
    use_cpu()
    finders, to = list(sys.meta_path), torch.Tensor.to
    use_cpu()
    result["again"] = finders == sys.meta_path and to is torch.Tensor.to
    result["switch"] = os.environ.get("CAKDP_OPENPCDET_CPU")
    result["imports"] = imports()
    use_cpu()
    result |= {"devices": devices(), "checkpoints": checkpoints(folder), "distributed": distributed(folder)}
    print("RESULT " + json.dumps({**result, "children": children()}))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
