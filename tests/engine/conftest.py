"""The tiny world, and how far its pipeline has come."""

from __future__ import annotations

import pytest
import torch
from tiny_world import make_world


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Sums must not depend on who else computes."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Data and configurations; nothing is trained. Not to be changed."""
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def trained(world):
    """The same once teacher and student have been trained."""
    for name in ("voxel_rcnn", "second"):
        outcome = world.command("train", name, "--num_epochs_to_eval", 0)
        assert outcome.code == 0, outcome.err
    return world


@pytest.fixture(scope="session")
def compressed(trained):
    """The same once the student has been scored, cut and distilled, stage by stage."""
    for stage in ("score_filters", "prune", "train", "test"):
        outcome = trained.command(stage, "second_cakdp")
        assert outcome.code == 0, outcome.err
    return trained
