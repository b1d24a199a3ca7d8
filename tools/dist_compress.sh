#!/usr/bin/env bash
# Compress on several GPUs (or processes): bash tools/dist_compress.sh 8 --cfg cfgs/kitti/second_cakdp.yaml
# All processes score, train and test; the first one chooses the cut and measures.
set -euo pipefail
exec "$(dirname "$0")/_torchrun.sh" compress.py "$@"
