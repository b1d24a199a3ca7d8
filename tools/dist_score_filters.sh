#!/usr/bin/env bash
# Score filters on several GPUs (or processes): bash tools/dist_score_filters.sh 8 --cfg cfgs/kitti/second_cakdp.yaml
set -euo pipefail
exec "$(dirname "$0")/_torchrun.sh" score_filters.py "$@"
