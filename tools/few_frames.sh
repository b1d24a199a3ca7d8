#!/usr/bin/env bash
# Full-size networks over-fitted to the few KITTI frames in a folder, then compressed: shows that every stage works on
# real data where there is no GPU. It goes on where it stopped. usage: bash tools/few_frames.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
export CAKDP_ENGINE=${CAKDP_ENGINE:-builtin}
python=${PYTHON:-python} folder=${1:-data/kitti}
cfgs=cfgs/kitti/few_frames runs=output/kitti/few_frames
train() { "$python" tools/train.py --workers 1 --use_amp --ckpt_save_interval 20 --num_epochs_to_eval 0 "$@"; }
data=(DATA_CONFIG.DATA_PATH "$folder")

"$python" tools/make_infos.py --data_path "$folder"
train --cfg $cfgs/second.yaml --set "${data[@]}"
"$python" benchmarks/recall.py --cfg $cfgs/second.yaml --ckpt $runs/second/default --set "${data[@]}"
train --cfg $cfgs/voxel_rcnn.yaml --set "${data[@]}"
"$python" tools/compress.py --cfg $cfgs/second_cakdp.yaml --workers 1 --use_amp --set "${data[@]}"
