#!/usr/bin/env bash
# usage: _torchrun.sh TOOL.py NUM_PROCESSES [ARGUMENTS...]
set -euo pipefail
if [[ $# -lt 2 || ! $2 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: bash tools/dist_${1%.py}.sh NUM_GPUS --cfg FILE [ARGUMENTS...]" >&2
    exit 2
fi
tool=$1 processes=$2
shift 2
rendezvous=(--standalone)
if [[ ${NNODES:-1} -gt 1 ]]; then
    rendezvous=(--nnodes="$NNODES" --node_rank="${NODE_RANK:?}" --master_addr="${MASTER_ADDR:?}" --master_port="${MASTER_PORT:-29500}")
fi
exec "${PYTHON:-python}" -m torch.distributed.run "${rendezvous[@]}" --nproc_per_node="$processes" "$(dirname "$0")/$tool" "$@"
