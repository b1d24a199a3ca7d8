"""Which names does OpenPCDet know? Ours are added to its registries."""

from __future__ import annotations

from cakdp_ext.openpcdet.versions import allow_checkpoints

__all__ = ["allow_checkpoints"]
