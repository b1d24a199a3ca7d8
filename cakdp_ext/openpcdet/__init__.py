"""How does it plug in? Our names in OpenPCDet's registries, and its detectors under our protocols.

``import cakdp_ext`` is enough: as soon as OpenPCDet's models are imported, its YAMLs may name ``SECONDNetCaKDP`` and
``CenterPointCaKDP``, ``AnchorHeadSingleIoU`` and ``CenterHeadIoU``. Nothing here imports OpenPCDet before somebody else
does, :func:`register` apart.
"""

from importlib import import_module


def register() -> None:
    """Make our names known to OpenPCDet now.

    Raises:
        ImportError: where OpenPCDet cannot be imported.
        ValueError: where a name of ours belongs to somebody else.
    """
    import_module("pcdet.models")  # first: having it imported registers too, and must not find us half imported
    from cakdp_ext.openpcdet.registration import register_all

    register_all()


def use_cpu() -> None:
    """Let a stock OpenPCDet run on this machine's CPU; call it before ``pcdet`` is imported.

    Raises:
        RuntimeError: where CUDA is available, or where ``pcdet`` has been imported already.
    """
    from cakdp_ext.openpcdet import cpu

    cpu.use_cpu()
