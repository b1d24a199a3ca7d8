#!/usr/bin/env bash
# Compare methods on several GPUs (or processes): bash tools/dist_compare.sh 8 --cfg cfgs/kitti/second_cakdp.yaml --methods SKD VanillaKD
# All processes score, train and test; the first one chooses the cut and measures.
set -euo pipefail
exec "$(dirname "$0")/_torchrun.sh" compare.py "$@"
