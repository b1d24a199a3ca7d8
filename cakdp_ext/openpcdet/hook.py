"""What happens at ``import cakdp_ext``?"""

from __future__ import annotations

import os


def install() -> None:
    """Let OpenPCDet run on CPU where CAKDP_OPENPCDET_CPU=1 asks for it."""
    if os.environ.get("CAKDP_OPENPCDET_CPU", "0") == "1":
        from cakdp_ext.openpcdet import use_cpu

        use_cpu()
