#!/usr/bin/env bash
# Compress on several GPUs (or processes): bash tools/dist_compress.sh 8 --cfg cfgs/kitti/second_cakdp.yaml
# The first process scores and measures; all of them train and test.
set -euo pipefail
exec "$(dirname "$0")/_torchrun.sh" compress.py "$@"
