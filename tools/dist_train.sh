#!/usr/bin/env bash
# Train on several GPUs (or processes): bash tools/dist_train.sh 8 --cfg cfgs/kitti/second_cakdp.yaml
# NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT describe a multi-node run.
set -euo pipefail
exec "$(dirname "$0")/_torchrun.sh" train.py "$@"
