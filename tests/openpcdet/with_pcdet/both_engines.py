"""The tiny world in both engines: the same weights, the same plan, the same batches."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from pcdet.models import build_network
from random_cut import random_plan, randomize_norms
from tiny_world import World, make_world
from torch import nn

from cakdp_ext.checkpoint import write_checkpoint
from cakdp_ext.datasets import collate
from cakdp_ext.distillation import FrozenTeacher
from cakdp_ext.engine.build import build_full, build_student, build_teacher, distill_config
from cakdp_ext.engine.data import build_split
from cakdp_ext.engine.step import TrainingStep
from cakdp_ext.openpcdet.batches import to_batch_dict
from cakdp_ext.openpcdet.build import as_dataset
from cakdp_ext.openpcdet.faces import with_faces
from cakdp_ext.pruning import channel_graph, save_plan
from cakdp_ext.types import Batch, PruningPlan

NOTHING = -4.0
"""Logit of what sees nothing; its score is 0.018."""
SCORE = "0.02"
UNTIED = (2, 3)
"""Frames in which no two anchors overlap an object equally best: which of them wins a tie is left to rounding."""


@dataclass(frozen=True)
class Both:
    """One data set, one plan and one set of weights for both engines."""

    world: World

    @cached_property
    def frames(self):
        return build_split(self.config("second"), "val")

    @property
    def geometry(self):
        return self.frames.geometry

    @cached_property
    def plan(self) -> PruningPlan:
        return self.another_plan("plan.json", seed=0)

    def another_plan(self, file, seed):
        """Cut half of the student at random and write that down."""
        graph = channel_graph(self.weights("second"), self.geometry)
        plan = random_plan(graph, 0.5, seed)
        save_plan(self.world.root / file, plan)
        return plan

    def config(self, name, *overrides):
        return self.world.config(name, *map(str, overrides))

    def student_config(self, *overrides):
        """``second_cakdp`` with the plan that training needs."""
        assert self.plan
        return self.config("second_cakdp", "MODEL.PRUNING.PLAN", self.world.root / "plan.json", *overrides)

    def weights(self, name, *overrides):
        """The built-in detector as if trained: its scores differ by more than rounding."""
        torch.manual_seed(0)
        model = build_full(self.config(name, *overrides), self.geometry)
        randomize_norms(model)
        speak_up(model.eval(), self.batch())
        return model

    def batch(self, *indices) -> Batch:
        return collate([self.frames[index] for index in indices or (0, 1)])

    def batch_dict(self, *indices):
        return to_batch_dict(self.batch(*indices))

    def dataset(self, training):
        dataset = as_dataset(self.config("second").CLASS_NAMES, self.geometry)
        dataset.training = training
        return dataset

    def theirs(self, config, training=False):
        """Build a detector of OpenPCDet's, as its scripts do."""
        model_cfg = deepcopy(config.MODEL)
        return build_network(model_cfg=model_cfg, num_class=3, dataset=self.dataset(training)).train(training)

    def pair(self, name, *overrides):
        """Give OpenPCDet's detector under our faces and the built-in one, with the same weights, in eval mode."""
        from pcdet.models import detectors

        ours, config = self.weights(name, *overrides), self.config(name, *overrides)
        detector = with_faces(detectors.__all__[config.MODEL.NAME])
        theirs = detector(model_cfg=deepcopy(config.MODEL), num_class=3, dataset=self.dataset(False))
        theirs.load_state_dict(ours.state_dict())
        return theirs.eval(), ours

    def student(self, *overrides, seed=1):
        """Build OpenPCDet's distilled compact student as training starts it."""
        torch.manual_seed(seed)
        return self.theirs(self.student_config(*overrides), training=True)

    def step(self, theirs, *overrides) -> tuple[TrainingStep, torch.nn.Module]:
        """Give the built-in engine's training step of a student with the same weights."""
        config = self.student_config(*overrides)
        ours = build_student(config, self.geometry, self.plan).model
        ours.load_state_dict(tensors_of(theirs))
        teacher: FrozenTeacher = build_teacher(config, self.geometry, torch.device("cpu"))
        return TrainingStep(ours.train(), teacher, distill_config(config)), ours

    def save(self, model, path, **more):
        """Write a checkpoint as OpenPCDet's loop does."""
        torch.save({"model_state": model.state_dict(), "epoch": 1, "it": 3, "optimizer_state": None, **more}, path)
        return path


@torch.no_grad()
def speak_up(model, batch):
    """Make a random network's scores differ by more than rounding, and those of what sees nothing low and no others'.

    Cells and rois without a voxel near all score alike; were they the best, their order would be left to rounding.
    """
    head = model.dense_head.conv_cls
    head.weight.mul_(10)
    cells = model.run_first_stage(batch).bev_features.movedim(1, 3).flatten(0, 2)
    kinds, counts = (1000 * cells).round().unique(dim=0, return_counts=True)
    head.bias.copy_(NOTHING - head.weight.flatten(1) @ kinds[counts.argmax()] / 1000)
    if hasattr(model, "roi_head"):
        last = model.roi_head.cls_pred_layer
        last.weight.mul_(-200)
        nowhere = torch.tensor([500.0, 500, 0, 4, 2, 2, 0]).expand(len(batch.frame_ids), 1, 7)
        last.bias.add_(NOTHING - model.refine(model.encode(batch), nowhere).mean())


def dither(model):
    """Let no two cells of the map see the same: among equal scores the order is left to rounding."""

    def add(_, __, output):
        maps = output["spatial_features_2d"] if isinstance(output, dict) else output
        noise = 0.1 * torch.randn(maps.shape, generator=torch.Generator().manual_seed(0))
        if not isinstance(output, dict):
            return maps + noise
        output["spatial_features_2d"] = maps + noise
        return output

    model.backbone_2d.register_forward_hook(add)
    return model


def norms_of(model):
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def seasoned(model, batch):
    """Give every norm the statistics of a batch."""
    for norm in norms_of(model):
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(to_batch_dict(batch))
    return model


def frozen_norms(model):
    """Train with statistics that stay."""
    model.train()
    for norm in norms_of(model):
        norm.eval()
    return model


def make_both(root) -> Both:
    both = Both(make_world(root))
    for name in ("second", "voxel_rcnn"):
        write_checkpoint(both.world.run(name).ckpt / "checkpoint_epoch_1.pth", both.weights(name), {"epoch": 1})
    assert both.plan
    return both


def tensors_of(model):
    """Give a state dict without the plan."""
    return {key: value for key, value in model.state_dict().items() if key != "pruning_plan"}


def without_objects(batch: Batch, *frames) -> Batch:
    """Take the objects out of some frames."""
    boxes, labels = batch.gt_boxes.clone(), batch.gt_labels.clone()
    for frame in frames:
        boxes[frame], labels[frame] = 0, -1
    return replace(batch, gt_boxes=boxes, gt_labels=labels)


def assert_same_detections(theirs, ours, least=1, share=1.0):
    """Compare OpenPCDet's ``pred_dicts`` with the built-in engine's detections, a share of which must be found."""
    assert len(theirs) == len(ours)
    for found, wanted in zip(theirs, ours, strict=True):
        assert len(found["pred_boxes"]) == len(wanted.boxes) >= least
        rows = [table(found["pred_boxes"], found["pred_scores"], found["pred_labels"])]
        rows.append(table(wanted.boxes, wanted.scores, wanted.labels + 1))
        gaps = (rows[1][:, None] - rows[0][None]).abs().amax(dim=2)
        assert (gaps < 1e-4).any(dim=1).sum() >= share * len(wanted.boxes)
        torch.testing.assert_close(found["pred_scores"], wanted.scores, atol=1e-4, rtol=0)


def table(boxes, scores, labels):
    return torch.cat([boxes, 10 * scores[:, None], labels[:, None]], dim=1)


def assert_same_gradients(theirs, ours, tolerance=1e-4):
    """Compare the gradients of parameters of one name, each relative to its largest entry.

    That of a bias is compared relative to its weight's: before a norm only noise is left of it.
    """
    wanted = dict(ours.named_parameters())
    assert list(dict(theirs.named_parameters())) == list(wanted)
    for name, parameter in theirs.named_parameters():
        gap = (parameter.grad - wanted[name].grad).abs().max()
        scale = max(wanted[like].grad.abs().max() for like in (name, name.replace("bias", "weight")))
        assert gap <= tolerance * scale + 1e-7, (name, float(gap))
