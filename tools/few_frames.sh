#!/usr/bin/env bash
# Full-size networks over-fitted to the few KITTI frames in data/kitti, then compressed: shows that every stage works on
# real data where there is no GPU. It goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
cfgs=cfgs/kitti/few_frames
"$python" tools/make_infos.py --cfg $cfgs/data.yaml
"$python" tools/train.py --cfg $cfgs/second.yaml --workers 1 --use_amp --ckpt_save_interval 40
"$python" benchmarks/recall.py --cfg $cfgs/second.yaml --ckpt output/kitti/few_frames/second/default
"$python" tools/train.py --cfg $cfgs/voxel_rcnn.yaml --workers 1 --use_amp --ckpt_save_interval 40
"$python" tools/compress.py --cfg $cfgs/second_cakdp.yaml --workers 1 --use_amp
