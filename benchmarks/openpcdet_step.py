"""What does the plugin cost? One distilled training step in OpenPCDet against the parts that it cannot do without.

``OPENPCDET_ROOT=OpenPCDet python benchmarks/openpcdet_step.py --cfg cfgs/kitti/second_cakdp.yaml``

Weights are random (a step costs the same), the representatives are brought to the number that ``--representatives``
asks for by lowering SCORE_THRESH, and the parts take turns on the same batch. Without CUDA, CAKDP_OPENPCDET_CPU=1.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from copy import deepcopy
from pathlib import Path

import torch
from easydict import EasyDict

from cakdp_ext.config import dump_config, load_config
from cakdp_ext.distillation import match_sites, rois_at, select_representatives
from cakdp_ext.engine.choice import adapter
from cakdp_ext.engine.data import build_split, one_frame
from cakdp_ext.pruning import architecture_fingerprint, channel_graph, save_plan
from cakdp_ext.types import PruningPlan

STUDENT, FIRST_STAGE, DISTILLED, PIPELINE = (
    "compact student, forward and backward", "teacher, first stage", "distilled step", "teacher, its whole pipeline"
)  # fmt: skip
SECOND_STAGE = "teacher, second stage on {} representatives"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", default="cfgs/kitti/second_cakdp.yaml")
    parser.add_argument("--split", default="train")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--representatives", type=int, default=100, help="at most so many of the frame")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--set", dest="overrides", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        frames, student, plain = build(load_config(args.cfg, args.overrides), Path(folder), args)
    student.to(device)
    plain.to(device)
    batch = one_frame(frames, 0).to(device)
    table = measure(student, plain, batch, args.repeats, device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {args.threads} threads"
    print(f"one frame ({len(batch.voxels)} voxels), {where}, median of {args.repeats}")
    report(table)


def build(config, folder, args):
    """Give frames, the distilled compact student of OpenPCDet's, and the same without teacher."""
    adapter("registration").register_all()
    frames = build_split(config, args.split)
    teacher = load_config(Path(config.CONFIG_FILE).parent / config.MODEL.DISTILL.TEACHER.CFG)
    teacher.DATA_CONFIG = config.DATA_CONFIG
    build_detector = adapter("build").build_detector
    full = build_detector(config.MODEL, config.CLASS_NAMES, frames.geometry)
    graph = channel_graph(full, frames.geometry)
    totals = {layer.name: layer.num_filters for layer in graph.prunable}
    ratio = config.MODEL.PRUNING.KEEP_RATIO
    keep = {name: tuple(range(max(round(ratio * total), 1))) for name, total in totals.items()}
    save_plan(folder / "plan.json", PruningPlan(keep, totals, architecture_fingerprint(graph)))
    second = build_detector(teacher.MODEL, teacher.CLASS_NAMES, frames.geometry)
    torch.save({"model_state": second.state_dict()}, folder / "teacher.pth")
    (folder / "teacher.yaml").write_text(dump_config(teacher), encoding="utf-8")
    model = EasyDict(deepcopy(dict(config.MODEL)))
    model.PRUNING.update(PLAN=str(folder / "plan.json"), INITIAL_WEIGHTS="random")
    model.DISTILL.update(TEACHER={"CFG": str(folder / "teacher.yaml"), "CKPT": str(folder / "teacher.pth")})
    model.DISTILL.update(SCORE_THRESH=0.0, NMS_POST_MAXSIZE=args.representatives)
    without = EasyDict({key: deepcopy(value) for key, value in model.items() if key != "DISTILL"})
    dataset = adapter("build").as_dataset(config.CLASS_NAMES, frames.geometry)
    dataset.training = True
    detector = adapter("detectors").SECONDNetCaKDP
    student, plain = (detector(model_cfg=tree, num_class=len(config.CLASS_NAMES), dataset=dataset)
                      for tree in (model, without))  # fmt: skip
    return frames, student, plain


def measure(student, plain, batch, repeats, device):
    """Time every part in turns; seconds."""
    to_batch_dict = adapter("batches").to_batch_dict
    teacher = student._distillation.teacher
    student.train()
    plain.train()

    def step(model):
        model.zero_grad(set_to_none=True)
        model(to_batch_dict(batch))[0]["loss"].backward()

    with torch.no_grad():
        predictions, encoded = student.predict_dense(batch), teacher.encode(batch)
    chosen = select_representatives(predictions, student._distillation.distiller.each["SKD"].config)
    matched = match_sites(student.sites, teacher.sites).teacher_indices(chosen.indices, encoded.predictions.cls_logits)
    rois = rois_at(encoded.predictions.boxes, matched)
    parts = {
        STUDENT: lambda: step(plain),
        FIRST_STAGE: lambda: teacher.encode(batch),
        SECOND_STAGE.format(rois.shape[1]): lambda: teacher.refine(encoded, rois),
        DISTILLED: lambda: step(student),
        PIPELINE: lambda: whole_pipeline(teacher._module, to_batch_dict(batch)),
    }
    seconds = {name: [] for name in parts}
    for turn in range(repeats + 1):
        for name, run in parts.items():
            taken = timed(run, device)
            if turn:
                seconds[name].append(taken)
        sys.stderr.write(f"turn {turn} of {repeats}\n")
    return {name: statistics.median(values) for name, values in seconds.items()}


@torch.no_grad()
def whole_pipeline(teacher, batch_dict):
    """Detect with the teacher as it is deployed: proposals, NMS, second stage on them, NMS again."""
    return teacher.eval()(batch_dict)


def timed(run, device):
    """Run once; seconds until the device has done with it."""
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def report(table):
    """Print the parts, and the step against their sum."""
    second_stage = next(name for name in table if name.startswith(SECOND_STAGE.partition("{")[0]))
    parts = table[STUDENT] + table[FIRST_STAGE] + table[second_stage]
    naive = table[STUDENT] + table[PIPELINE] + table[second_stage]
    width = max(map(len, table))
    for name, seconds in table.items():
        print(f"{name:<{width}}  {1000 * seconds:10.1f} ms")
    print(f"distilled step over the sum of its parts: {table[DISTILLED] / parts - 1:+.1%}")
    print(f"the student beside the whole teacher and its second stage: {naive / table[DISTILLED]:.2f} times as long")


if __name__ == "__main__":
    main()
