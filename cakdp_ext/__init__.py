"""Make LiDAR 3D object detectors small: category-aware distillation, pruning and IoU masking (CaKDP, CVPR 2024)."""

from cakdp_ext.openpcdet import hook as _hook
from cakdp_ext.openpcdet import register as _register

__version__ = "0.1.0"

_hook.install(_register)
