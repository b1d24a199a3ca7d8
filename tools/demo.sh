#!/usr/bin/env bash
# The whole pipeline on generated scenes; run it again and it goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHON=${PYTHON:-python} PYTHONUNBUFFERED=1 CAKDP_ENGINE=builtin
flags=(--batch_size 4 --workers 1 --device cpu)   # two processes with a thread each, four frames a step together
stage() { printf '\n\033[1m[%s] %s\033[0m\n' "$(date +%H:%M:%S)" "$1"; }

stage "1/5  Generating street scenes in KITTI's layout -> data/scenes"
"$PYTHON" tools/make_scenes.py --cfg cfgs/synthetic/scenes.yaml --out data/scenes
"$PYTHON" tools/make_infos.py --cfg cfgs/synthetic/data.yaml

stage "2/5  Training the teacher, Voxel R-CNN -> output/synthetic/voxel_rcnn"
bash tools/dist_train.sh 2 --cfg cfgs/synthetic/voxel_rcnn.yaml "${flags[@]}" --num_epochs_to_eval 0

stage "3/5  Training the student, SECOND -> output/synthetic/second"
bash tools/dist_train.sh 2 --cfg cfgs/synthetic/second.yaml "${flags[@]}" --num_epochs_to_eval 0

stage "4/5  Compressing: score, prune, distil, test -> output/synthetic/second_cakdp"
bash tools/dist_compress.sh 2 --cfg cfgs/synthetic/second_cakdp.yaml "${flags[@]}"

stage "5/5  Done in $((SECONDS / 60)) min $((SECONDS % 60)) s: open output/synthetic/second_cakdp/default/report.html"
