"""What does a stock OpenPCDet need to run without CUDA? For trying, testing and teaching; its source stays as it is."""

from __future__ import annotations

import sys


def use_cpu() -> None:
    """Prepare this process, and those that it starts, for an OpenPCDet that runs on CPU; again changes nothing.

    Its compiled modules become our ops, its calls of CUDA stay on CPU, spconv's faults on CPU are cured, and packages
    that only other models and data sets need may be absent. ``pcdet`` is not imported.

    Raises:
        RuntimeError: where CUDA is available, or where ``pcdet`` has been imported already.
    """
    from cakdp_ext.openpcdet.cpu import modules

    if modules.are_in_place():
        return
    _check_machine()
    from cakdp_ext.checkpoint import allow_numpy_scalars
    from cakdp_ext.cpu_memory import keep_freed_memory
    from cakdp_ext.openpcdet.cpu import children, devices, distributed
    from cakdp_ext.openpcdet.versions import restore_numpy_names

    keep_freed_memory()
    devices.stay_on_cpu()
    distributed.use_gloo()
    allow_numpy_scalars()
    restore_numpy_names()
    modules.put_in_place()
    children.let_follow()


def _check_machine() -> None:
    from cakdp_ext.openpcdet.cpu.children import SWITCH

    if "pcdet" in sys.modules:
        raise RuntimeError(
            f"use_cpu() came after `import pcdet`; call it, or import cakdp_ext with {SWITCH}=1, before that"
        )
    import torch

    if torch.cuda.is_available():
        raise RuntimeError(
            f"use_cpu() and {SWITCH}=1 are for machines without CUDA, but PyTorch sees {torch.cuda.device_count()} "
            f"CUDA device(s); unset {SWITCH} to use them, or hide them with CUDA_VISIBLE_DEVICES=''"
        )
