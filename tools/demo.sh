#!/usr/bin/env bash
# The whole pipeline on generated scenes; run it again and it goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
export PYTHONUNBUFFERED=1
stage() { printf '\n\033[1m[%s] %s\033[0m\n' "$(date +%H:%M:%S)" "$1"; }

stage "1/5  Generating street scenes in KITTI's layout -> data/scenes"
"$python" tools/make_scenes.py --cfg cfgs/synthetic/scenes.yaml --out data/scenes
"$python" tools/make_infos.py --cfg cfgs/synthetic/data.yaml

stage "2/5  Training the teacher, Voxel R-CNN -> output/synthetic/voxel_rcnn"
"$python" tools/train.py --cfg cfgs/synthetic/voxel_rcnn.yaml --num_epochs_to_eval 0 --use_amp

stage "3/5  Training the student, SECOND -> output/synthetic/second"
"$python" tools/train.py --cfg cfgs/synthetic/second.yaml --num_epochs_to_eval 0 --use_amp

stage "4/5  Compressing: score, prune, distil, test -> output/synthetic/second_cakdp"
"$python" tools/compress.py --cfg cfgs/synthetic/second_cakdp.yaml --use_amp

stage "5/5  Done in $((SECONDS / 60)) min $((SECONDS % 60)) s: open output/synthetic/second_cakdp/default/report.html"
