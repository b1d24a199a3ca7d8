"""The benchmark that tries pairs of student and teacher: its rows, and what it calls an error."""

from __future__ import annotations

import math

import pytest
from tiny_world import command, tool

from cakdp_ext.distillation import match_sites
from cakdp_ext.distillation.matching import SiteMatch
from cakdp_ext.engine.build import build_full
from cakdp_ext.engine.data import build_split
from cakdp_ext.pruning import count_parameters

pytestmark = pytest.mark.xdist_group("engine")
PAIRS = ("second_cakdp", "centerpoint_cakdp")


def tried(world, names, *argv):
    cfgs = [world.cfg(name) for name in names]
    return command("pairs", "--cfg", *cfgs, "--device", "cpu", "--steps", 2, *argv)


def rows(text):
    head, _, *cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [dict(zip(head, row, strict=True)) for row in cells]


def test_pairs_of_random_weights_distil(world):
    outcome = tried(world, PAIRS)
    assert outcome.code == 0, outcome.err
    found = rows(outcome.out)
    assert [row["student"] for row in found] == ["second (random)", "centerpoint (random)"]
    for name, row in zip(PAIRS, found, strict=True):
        config = world.config(name)
        full = count_parameters(build_full(config, build_split(config, "train").geometry))
        assert float(row["params [M]"]) < 0.7 * full / 1e6
        assert (row["teacher"], row["keep"], row["score >"]) == ("voxel_rcnn (random)", "0.50", "0")
        losses = [float(value) for part in ("task", "category", "IoU") for value in row[part].split(" / ")]
        assert len(losses) == 6
        assert all(math.isfinite(loss) and loss > 0 for loss in losses)
        assert float(row["representatives"]) > 0
        assert row["matched"] == "100%"
        assert int(row["boxes"]) > 0


def test_named_checkpoints_keep_the_threshold(trained):
    named = [f"{trained.cfg(name)}={trained.run(name).path}" for name in ("second", "voxel_rcnn")]
    outcome = tried(trained, PAIRS[:1], "--ckpt", *named)
    assert outcome.code == 0, outcome.err
    (row,) = rows(outcome.out)
    assert (row["student"], row["teacher"], row["score >"]) == ("second", "voxel_rcnn", "0.001")
    outcome = tried(trained, PAIRS[:1], "--ckpt", *named, "--set", "MODEL.DISTILL.SCORE_THRESH", 1.0)
    assert "no frame has a representative above 1.0; lower it with --set MODEL.DISTILL.SCORE_THRESH" in outcome.error


def test_answers_from_elsewhere_are_an_error(world, monkeypatch):
    class Shifted(SiteMatch):
        def teacher_indices(self, indices, teacher_logits):
            right = super().teacher_indices(indices, teacher_logits)
            return (right + self.num_teacher_sites // 2) % self.num_teacher_sites

    def wrong(student_sites, teacher_sites):
        match = match_sites(student_sites, teacher_sites)
        return Shifted(match.num_teacher_sites, match.candidates)

    monkeypatch.setattr(tool("pairs"), "match_sites", wrong)
    assert "no representative was matched" in tried(world, PAIRS[:1]).error


def test_what_is_no_pair_is_refused(world):
    assert "has no MODEL.DISTILL section with METHOD SKD" in tried(world, ["second_pruned"]).error
    assert "--ckpt takes YAML=CKPT" in tried(world, PAIRS, "--ckpt", "nothing").error
