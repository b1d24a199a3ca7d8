#!/usr/bin/env bash
# Test on several GPUs (or processes): bash tools/dist_test.sh 8 --cfg cfgs/kitti/second.yaml --ckpt output/kitti/second/default
set -euo pipefail
exec "$(dirname "$0")/_torchrun.sh" test.py "$@"
