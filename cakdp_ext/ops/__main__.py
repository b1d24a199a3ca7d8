"""Print which implementation each op uses: ``python -m cakdp_ext.ops``."""

import sys

from cakdp_ext.ops import native

sys.stdout.write("".join(f"{name:<28}{device:<6}{what}\n" for name, device, what in native.describe()))
