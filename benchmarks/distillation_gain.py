"""By how much does distillation beat fine-tuning alone? The same cut, the same start, several seeds.

Run it after ``make demo`` (or after any ``compress.py``): ``python benchmarks/distillation_gain.py --seeds 0 1 2``.
It trains a teacher for longer than the demo does, then ``second_pruned.yaml`` and ``second_cakdp.yaml`` by the same
plan, and prints the mean over classes of the moderate 3D AP (R40). It goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = (
    ("fine-tuned alone", "second_pruned", "default", []),
    ("distilled", "second_cakdp", "no_mask", ["MODEL.POST_PROCESSING.IOU_REFINEMENT.MODE", "none"]),
    ("distilled + IoU mask", "second_cakdp", "default", []),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="synthetic", help="folder of cfgs/ that holds the YAMLs")
    parser.add_argument("--plan", help="pruning plan; the one of compress.py by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=1, help="of each training; batch norm sees a share of the 4")
    parser.add_argument("--epochs", type=int, help="of the students; NUM_EPOCHS by default")
    parser.add_argument("--teacher_epochs", type=int, default=24, help="a teacher has to be better than its student")
    args = parser.parse_args()
    teacher = train_teacher(args)
    plan = args.plan or f"output/{args.folder}/second_cakdp/default/plan.json"
    results = {}
    for seed in args.seeds:
        for name, stem, tag, overrides in VARIANTS:
            taught = ["MODEL.DISTILL.TEACHER.CKPT", teacher] if stem == "second_cakdp" else []
            settings = ["MODEL.PRUNING.PLAN", plan, *taught]
            results[name, seed] = run(args, stem, seed, tag, settings, overrides)
            print(f"seed {seed}  {name:<22} {line(results[name, seed])}", flush=True)
    print(f"\n{'':<24}{'mean':>8}{'spread':>8}   each seed")
    for name, *_ in VARIANTS:
        means = [statistics.mean(results[name, seed].values()) for seed in args.seeds]
        spread = statistics.stdev(means) if len(means) > 1 else 0.0
        print(f"{name:<24}{statistics.mean(means):8.2f}{spread:8.2f}   {'  '.join(f'{m:.2f}' for m in means)}")


def train_teacher(args):
    """Train the teacher unless it stands, test it, give its run folder."""
    common = ["--cfg", f"cfgs/{args.folder}/voxel_rcnn.yaml", "--extra_tag", "longer", "--workers", "1"]
    command("train.py", args.processes, [*common, "--batch_size", "4", "--epochs", str(args.teacher_epochs)])
    folder = Path("output", args.folder, "voxel_rcnn", "longer")
    print(f"teacher, {args.teacher_epochs} epochs  {line(read_metrics(folder, 'default'))}", flush=True)
    return str(folder)


def run(args, stem, seed, tag, settings, overrides):
    """Train one variant unless it stands, test it, give the classes' APs."""
    common = ["--cfg", f"cfgs/{args.folder}/{stem}.yaml", "--extra_tag", f"seed{seed}", "--workers", "1"]
    train = [*common, "--seed", str(seed), "--batch_size", "4", "--num_epochs_to_eval", "0"]
    train += ["--epochs", str(args.epochs)] if args.epochs else []
    command("train.py", args.processes, [*train, "--set", *settings])
    command("test.py", args.processes, [*common, "--eval_tag", tag, "--set", *settings, *overrides])
    return read_metrics(Path("output", args.folder, stem, f"seed{seed}"), tag)


def read_metrics(folder, tag):
    """Give the classes' APs of the newest evaluation of a run."""
    folders = (folder / "eval").glob(f"epoch_*/*/{tag}/metrics.json")
    metrics = json.loads(max(folders, key=os.path.getmtime).read_text())
    return {k: v for k, v in metrics.items() if k.endswith("_3d/moderate_R40") and not k.startswith("mAP")}


def command(tool, processes, arguments):
    done = subprocess.run(
        ["bash", str(ROOT / "tools" / "_torchrun.sh"), tool, str(processes), *arguments],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{tool} {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")


def line(metrics):
    return "  ".join(f"{key.split('_')[0]} {value:.2f}" for key, value in metrics.items())


if __name__ == "__main__":
    main()
