"""Which of our names does OpenPCDet learn?"""

from __future__ import annotations

from pcdet.models import dense_heads, detectors

from cakdp_ext.checkpoint import allow_numpy_scalars
from cakdp_ext.openpcdet.center_heads import CenterHeadIoU
from cakdp_ext.openpcdet.detectors import CenterPointCaKDP, SECONDNetCaKDP
from cakdp_ext.openpcdet.heads import AnchorHeadSingleIoU
from cakdp_ext.openpcdet.versions import restore_numpy_names

_REGISTRIES = (
    (detectors.__all__, {"SECONDNetCaKDP": SECONDNetCaKDP, "CenterPointCaKDP": CenterPointCaKDP}),
    (dense_heads.__all__, {"AnchorHeadSingleIoU": AnchorHeadSingleIoU, "CenterHeadIoU": CenterHeadIoU}),
)


def register_all() -> None:
    """Enter every name; those that are entered already stay, and nobody else's name is touched.

    Since PyTorch 2.6 ``torch.load`` refuses the NumPy scalars in OpenPCDet's checkpoints, and its automatic resume then
    starts again from nothing: they are allowed here as well. NumPy's old names of Python's numbers come back.

    Raises:
        ValueError: for a name that another class has; then nothing has been entered.
    """
    for registry, names in _REGISTRIES:
        for name, ours in names.items():
            owner = registry.get(name, ours)
            if owner is not ours:
                raise ValueError(
                    f"OpenPCDet knows {name!r} already, as {owner.__module__}.{owner.__qualname__}; "
                    "rename that one, or import cakdp_ext before it is registered to see who does it"
                )
    for registry, names in _REGISTRIES:
        registry.update(names)
    allow_numpy_scalars()
    restore_numpy_names()
