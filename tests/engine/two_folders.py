"""Score filters where each process has an output folder of its own: torchrun two_folders.py FOLDER FLAGS."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from tiny_world import tool

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, *flags = sys.argv[1:]
    tool("score_filters").main([*flags, "--output_dir", str(Path(folder) / os.environ["RANK"])])
