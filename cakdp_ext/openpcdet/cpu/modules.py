"""Which modules does OpenPCDet import that a CPU machine lacks, and what does it get instead?

Two finders on ``sys.meta_path`` answer: the first gives our ops under the names of its compiled modules; the last,
asked when nobody else has a module, gives inert stand-ins for what only other models and data sets need.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from cakdp_ext.openpcdet.cpu.inert import InertLoader, TolerantLoader
from cakdp_ext.spconv_on_cpu import cure_cpu_faults

OURS = {
    "pcdet.ops.iou3d_nms.iou3d_nms_cuda": "cakdp_ext.openpcdet.ops.iou3d_nms_cuda",
    "pcdet.ops.roiaware_pool3d.roiaware_pool3d_cuda": "cakdp_ext.openpcdet.ops.roiaware_pool3d_cuda",
    "pcdet.ops.pointnet2.pointnet2_stack.pointnet2_stack_cuda": "cakdp_ext.openpcdet.ops.pointnet2_stack_cuda",
    "pcdet.datasets.kitti.kitti_object_eval_python.rotate_iou": "cakdp_ext.openpcdet.cpu.rotate_iou",
    "pcdet.datasets.once.once_eval.iou_utils": "cakdp_ext.openpcdet.cpu.rotate_iou",
}
"""What of OpenPCDet runs on our code."""

ONLY_ON_CUDA = (
    "pcdet.ops.pointnet2.pointnet2_batch.pointnet2_batch_cuda",
    "pcdet.ops.roipoint_pool3d.roipoint_pool3d_cuda",
    "pcdet.ops.bev_pool.bev_pool_ext",
    "pcdet.ops.ingroup_inds.ingroup_inds_cuda",
)
NO_CPU_VERSION = (
    "{name} has no CPU version here; SECOND, CenterPoint, Voxel R-CNN, PV-RCNN, PV-RCNN++ and Part-A2 do without it"
)

OPTIONAL = {
    "SharedArray": "SharedArray",
    "av2": "av2",
    "cv2": "opencv-python-headless",
    "kornia": "kornia",
    "pandas": "pandas",
    "pyquaternion": "pyquaternion",
    "skimage": "scikit-image",
    "torchvision": "torchvision",
}
"""Packages that OpenPCDet imports before it knows whether it needs them, and what pip calls them.

They may be absent, or there and broken: a torchvision for CUDA beside a PyTorch for CPU, an OpenCV without libGL.
"""
INSTALL = "{name} is used, but its package is not installed here; pip install "

BREAKABLE = "pcdet.datasets.argo2.argo2_utils.so3"
"""What of OpenPCDet does not load beside another kornia than it was written for."""

VERSION = "pcdet.version"
SPARSE = "pcdet.utils.spconv_utils"


def put_in_place() -> None:
    """Answer the imports of this process from now on."""
    sys.meta_path.insert(0, OursFirst())
    sys.meta_path.append(InertLast())


def are_in_place() -> bool:
    """Tell whether ``put_in_place`` was called."""
    return any(isinstance(finder, OursFirst) for finder in sys.meta_path)


class OursFirst(MetaPathFinder):
    """Finds our modules under OpenPCDet's names, even beside compiled ones, which know no CPU tensors."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Give a module of ours, an inert one, or nothing."""
        if fullname in OURS:
            return ModuleSpec(fullname, CopyLoader(OURS[fullname]), origin=OURS[fullname])
        if fullname in ONLY_ON_CUDA:
            return ModuleSpec(fullname, InertLoader(NO_CPU_VERSION, NotImplementedError))
        if fullname == BREAKABLE or (_package(fullname) in OPTIONAL and _asked_by_openpcdet()):
            return _tolerant(fullname, path, target)
        if fullname == SPARSE:
            cure_cpu_faults()
        return None


class InertLast(MetaPathFinder):
    """Finds what nobody else has: the version that OpenPCDet's setup.py writes, and packages it need not have."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Give a stand-in, to OpenPCDet alone, or nothing."""
        if fullname == VERSION and path:
            return ModuleSpec(fullname, VersionLoader(Path(next(iter(path)))))
        if _package(fullname) in OPTIONAL and _asked_by_openpcdet():
            return ModuleSpec(fullname, InertLoader(INSTALL + OPTIONAL[_package(fullname)]), is_package=True)
        return None


class CopyLoader(Loader):
    """Loads the public names of another module."""

    def __init__(self, source: str) -> None:
        self.source = source

    def exec_module(self, module: ModuleType) -> None:
        """Fill a new module."""
        names = vars(importlib.import_module(self.source))
        vars(module).update({name: value for name, value in names.items() if not name.startswith("__")})


class VersionLoader(Loader):
    """Loads ``pcdet.version`` for a checkout whose setup.py was not run."""

    def __init__(self, package: Path) -> None:
        self.package = package

    def exec_module(self, module: ModuleType) -> None:
        """Take the version from setup.py beside the package."""
        setup = self.package.parent / "setup.py"
        text = setup.read_text(encoding="utf-8") if setup.is_file() else ""
        found = re.search(r"version\s*=\s*['\"](\d[\w.]*)", text)
        vars(module)["__version__"] = f"{found[1] if found else '0'}+cpu"


def _tolerant(fullname: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
    """Find a module as it would be found without us, but let it fail to load."""
    for find_spec in _other_finders():
        spec = find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = TolerantLoader(spec.loader)
            return spec
    return None


def _package(name: str) -> str:
    return name.partition(".")[0]


def _other_finders() -> list[Callable[..., ModuleSpec | None]]:
    ours = (OursFirst, InertLast)
    return [f.find_spec for f in sys.meta_path if hasattr(f, "find_spec") and not isinstance(f, ours)]


def _asked_by_openpcdet() -> bool:
    """Tell whether the import statement that is being served stands in OpenPCDet; others see the truth."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name != __name__ and _package(name) not in ("importlib", "_frozen_importlib"):
            return _package(name) == "pcdet"
        frame = frame.f_back  # type: ignore[assignment]
    return False
