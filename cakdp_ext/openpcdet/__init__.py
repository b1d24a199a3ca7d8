"""How does it plug into OpenPCDet? The only place that knows its interfaces."""


def use_cpu() -> None:
    """Let a stock OpenPCDet run on this machine's CPU; call it before ``pcdet`` is imported.

    Raises:
        RuntimeError: where CUDA is available, or where ``pcdet`` has been imported already.
    """
    from cakdp_ext.openpcdet import cpu

    cpu.use_cpu()
