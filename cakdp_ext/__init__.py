"""Make LiDAR 3D object detectors small: category-aware distillation, pruning and IoU masking (CaKDP, CVPR 2024)."""

__version__ = "0.1.0"

from cakdp_ext.openpcdet import hook

hook.install()
