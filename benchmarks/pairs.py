"""Does every pair distil at full size? A few steps of the cut student under its teacher, on the frames at hand.

    python benchmarks/pairs.py --cfg cfgs/kitti/*_cakdp.yaml cfgs/kitti/pairs/*_0.50.yaml

Nothing has to be trained first: a network that --ckpt does not name gets random weights. A student of random weights is
sure of nothing: its score thresholds, of distillation (column "score >") and of testing, are 0 then. The IoU mask's
DELTA is 0 in any case, as its branch is fresh. The cut is ProPr's, or that of MODEL.PRUNING.PLAN. A loss that is not
finite is an error, and so are no representatives, or none that the teacher answers in its cell.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import chain, islice, repeat
from pathlib import Path

import torch

from cakdp_ext.checkpoint import write_checkpoint
from cakdp_ext.config import ConfigError, from_node
from cakdp_ext.distillation import match_sites, select_representatives
from cakdp_ext.engine.build import (
    build_full,
    build_student,
    build_teacher,
    distill_config,
    load_source_config,
    source_file,
)
from cakdp_ext.engine.choice import BUILTIN, ENGINE, engine_name
from cakdp_ext.engine.cli import load_request, run_command
from cakdp_ext.engine.data import build_split, one_frame, training_loader
from cakdp_ext.engine.distributed import workers
from cakdp_ext.engine.prune import make_plan, required_pruning
from cakdp_ext.engine.schedule import OptimizationConfig
from cakdp_ext.engine.step import TrainingStep
from cakdp_ext.engine.trainer import Trainer, TrainOptions
from cakdp_ext.pruning import PROPR, count_parameters, load_plan, peak_memory

COLUMNS = ("student", "teacher", "keep", "params [M]", "score >", "task", "category", "IoU", "representatives",
           "matched", "step [s]", "test [s]", "boxes", "peak [GiB]")  # fmt: skip
RANDOM = " (random)"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", nargs="+", required=True, help="YAMLs with PRUNING and DISTILL")
    parser.add_argument("--ckpt", nargs="+", default=[], metavar="YAML=CKPT", help="weights of a student or teacher")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="cpu, cuda or cuda:N; CUDA where there is a device by default")
    parser.add_argument("--set", dest="overrides", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE")
    args = parser.parse_args(argv)
    if engine_name() != BUILTIN:
        raise ConfigError(f"pairs are tried in the built-in engine; set {ENGINE}={BUILTIN}")
    args.extra_tag, cfgs, ckpts = "default", args.cfg, dict(map(read_pair, args.ckpt))
    with workers(args.device) as place:
        print(line(COLUMNS), line(["---", "---", *["--:"] * (len(COLUMNS) - 2)]), sep="\n", flush=True)
        for args.cfg in cfgs:
            with tempfile.TemporaryDirectory() as args.output_dir:
                print(line(Trial(*load_request(args), place, args, ckpts).row()), flush=True)
    print(
        f"\n{args.steps} steps of {args.batch_size} frames on {place.device.type}, {torch.get_num_threads()} threads: "
        "losses of the first and last, median of their times; representatives a frame, and the share that the teacher "
        "answers in its cell; memory of the steps, what the pairs before them left included"
    )


def read_pair(text):
    cfg, _, ckpt = text.partition("=")
    if not Path(cfg).is_file() or not ckpt:
        raise ConfigError(f"--ckpt takes YAML=CKPT with the YAML of a student or teacher, got {text!r}")
    return Path(cfg).resolve(), ckpt


def line(cells):
    return f"| {' | '.join(cells)} |"


class Watch:
    """Hook of SKD that keeps what it last compared, and how many representatives each frame had."""

    def __init__(self):
        self.lesson, self.counts = None, []

    def __call__(self, method, asked, output):
        counts = output.num_representatives.tolist()
        self.lesson = asked[0] if any(counts) else self.lesson
        self.counts += counts


class Trial:
    """One pair: its networks, its steps, its row."""

    def __init__(self, config, run, place, args, ckpts):
        self.config, self.run, self.place, self.args, self.ckpts = config, run, place, args, ckpts
        distill = distill_config(config)
        if distill is None or "SKD" not in {choice.name for choice in distill.methods}:
            raise ConfigError(f"{config.CONFIG_FILE} has no MODEL.DISTILL section with METHOD SKD; --cfg takes pairs")
        split = str(config.DATA_CONFIG.DATA_SPLIT["train"])
        self.frames = build_split(config, split, training=True, seed=args.seed)
        self.loader, self.sampler = training_loader(
            self.frames, place, batch_size=args.batch_size, num_workers=0, seed=args.seed
        )

    def row(self):
        """Build, train, test; give the cells."""
        names = [self.give_weights("PRUNING", "STUDENT"), self.give_weights("DISTILL", "TEACHER")]
        self.lower_thresholds(is_random=names[0].endswith(RANDOM))
        pruning, distill = required_pruning(self.config), distill_config(self.config)
        student = build_student(self.config, self.frames.geometry, self.plan(pruning)).model.to(self.place.device)
        teacher = build_teacher(self.config, self.frames.geometry, self.place.device)
        step = TrainingStep(student, teacher, distill)
        skd, watch = step.distiller.each["SKD"], Watch()
        skd.register_forward_hook(watch)
        with peak_memory(self.place.device) as peak:
            losses, seconds = self.train(step)
        if watch.lesson is None:
            raise ConfigError(
                f"{self.config.CONFIG_FILE}: no frame has a representative above {skd.config.score_thresh}; lower it "
                "with --set MODEL.DISTILL.SCORE_THRESH"
            )
        matched = share_in_the_same_cell(watch.lesson, skd.config, self.cell(student))
        took, boxes = self.test(student.eval())
        return [
            *names, f"{pruning.keep_ratio:.2f}", f"{count_parameters(student) / 1e6:.2f}",
            f"{skd.config.score_thresh:g}",
            *(" / ".join(f"{part[name]:.3g}" for part in (losses[0], losses[-1])) for name in losses[0]),
            f"{statistics.mean(watch.counts):.3g}", f"{matched:.0%}",
            f"{statistics.median(seconds):.1f}", f"{took:.1f}", str(boxes),
            "-" if peak.num_bytes is None else f"{peak.num_bytes / 2**30:.1f}",
        ]  # fmt: skip

    def give_weights(self, section, role):
        """Let the YAML name a checkpoint that is there; tell whose."""
        node = self.config.MODEL[section]
        source = required_pruning(self.config).student if role == "STUDENT" else distill_config(self.config).teacher
        file = source_file(source, self.config.CONFIG_FILE)
        named = self.ckpts.get(file.resolve())
        node[role].CKPT = named or str(self.stand_in(load_source_config(source, self.config.CONFIG_FILE), role))
        return file.stem + ("" if named else RANDOM)

    def lower_thresholds(self, is_random):
        """Let pass what a fresh IoU branch or a random student is surest of, however little that is."""
        model = self.config.MODEL
        nodes = (model.DISTILL, model.POST_PROCESSING, model.DENSE_HEAD.get("POST_PROCESSING", {}))
        for node in nodes if is_random else ():
            node.update({"SCORE_THRESH": 0.0} if "SCORE_THRESH" in node else {})
        if "IOU_REFINEMENT" in model.POST_PROCESSING:
            model.POST_PROCESSING.IOU_REFINEMENT.DELTA = 0.0

    def stand_in(self, config, role):
        """Write the checkpoint of a network with random weights."""
        torch.manual_seed(self.args.seed)
        model = build_full(config, self.frames.geometry)
        self.run.path.mkdir(parents=True, exist_ok=True)
        path = self.run.path / f"{role}.pth"
        write_checkpoint(path, model, {"epoch": 0})
        return path

    def batches(self, count):
        self.sampler.set_position(0)
        endless = chain.from_iterable(repeat(self.loader))
        return (batch.to(self.place.device) for batch in islice(endless, count))

    def plan(self, pruning):
        if pruning.plan:
            return load_plan(pruning.plan)
        self.config.MODEL.PRUNING.CRITERION = PROPR
        return make_plan(self.config, self.run)

    def train(self, step):
        """Take the steps; give their losses by part and their seconds, without loading."""
        optimization = from_node(OptimizationConfig, self.config.OPTIMIZATION, "OPTIMIZATION")
        options = TrainOptions(epochs=optimization.num_epochs)
        trainer = Trainer(step, self.loader, self.sampler, self.place, self.run, optimization, options)
        step.train()
        losses, seconds = [], []
        for batch in self.batches(self.args.steps):
            start = time.perf_counter()
            parts = {name: float(value) for name, value in trainer.train_step(batch).items()}
            seconds.append(time.perf_counter() - start)
            category = sum(parts.pop(name) for name in list(parts) if name.startswith("distill_loss"))
            iou = parts.pop("iou_loss", 0.0)
            losses.append({"task": sum(parts.values()), "category": category, "IoU": iou})
        return losses, seconds

    def test(self, student):
        """Detect in one frame of the test split; seconds, and how many boxes."""
        split = str(self.config.DATA_CONFIG.DATA_SPLIT["test"])
        batch = one_frame(build_split(self.config, split), 0).to(self.place.device)
        with torch.inference_mode():
            start = time.perf_counter()
            boxes = student(batch)[0].boxes.cpu()
        return time.perf_counter() - start, len(boxes)

    def cell(self, student):
        """Sizes of a cell of the student's map, metres."""
        voxel = torch.tensor(self.frames.geometry.voxel_size[:2], device=self.place.device)
        return voxel * student.sites.stride


@torch.no_grad()
def share_in_the_same_cell(lesson, config, cell):
    """Tell which share of SKD's representatives the teacher answers from within half a cell."""
    sites, theirs = lesson.student.sites, lesson.teacher.sites
    chosen = select_representatives(lesson.student.dense, config)
    answers = match_sites(sites, theirs).teacher_indices(chosen.indices, lesson.teacher.dense.cls_logits)
    apart = (sites.centers[chosen.indices] - theirs.centers[answers]).abs()
    share = float((apart <= cell * 0.501).all(dim=2)[chosen.valid].float().mean())
    if share == 0:
        raise ConfigError("no representative was matched with a prediction of the teacher in its cell")
    return share


if __name__ == "__main__":
    sys.exit(run_command(main))
