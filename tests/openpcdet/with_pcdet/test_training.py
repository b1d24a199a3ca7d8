"""Poor frames, half precision, numbers that are none, and two processes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from both_engines import frozen_norms, seasoned, without_objects
from pcdet.models import model_fn_decorator
from torch import nn

from cakdp_ext.openpcdet.batches import to_batch_dict

THRESH = "MODEL.DISTILL.SCORE_THRESH"
TIMEOUT = 240


def train_step(model, batch):
    loss, logged, _ = model_fn_decorator()(model, to_batch_dict(batch))
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
    assert torch.isfinite(loss)
    return loss.detach(), logged


def threshold_between(model, batch):
    """A score that the best prediction of one frame of a batch reaches, and that of the other does not."""
    with torch.no_grad():
        model(to_batch_dict(batch))
    logits = model.dense_head.forward_ret_dict["cls_preds"].double()
    best = sorted(float(frame.sigmoid().max()) for frame in logits)
    assert best[1] - best[0] > 1e-6
    return f"{sum(best) / 2:.12f}"


@pytest.mark.parametrize("poor", [(0,), (0, 1)], ids=["one frame", "all frames"])
@pytest.mark.parametrize("name", ["distilled", "voxel_rcnn"])
def test_frames_without_objects_train_and_test(both, name, poor):
    model = both.student() if name == "distilled" else both.pair("voxel_rcnn")[0].train()
    batch = without_objects(both.batch(), *poor)
    train_step(model, batch)
    with torch.inference_mode():
        found, recall = model.eval()(to_batch_dict(batch))
    assert len(found) == 2
    assert recall.get("gt", 0) == int((batch.gt_labels >= 0).sum())


def test_a_batch_whose_objects_are_no_rows_at_all_trains_and_tests(both):
    batch = both.batch()
    batch = replace(batch, gt_boxes=batch.gt_boxes[:, :0], gt_labels=batch.gt_labels[:, :0])
    model = both.student()
    train_step(model, batch)
    with torch.inference_mode():
        assert len(model.eval()(to_batch_dict(batch))[0]) == 2


def test_a_frame_without_representatives_contributes_nothing(both):
    batch = both.batch()
    score = threshold_between(both.student(), batch)
    _, logged = train_step(both.student(THRESH, score), batch)
    assert 0 < logged["num_representatives"] < 100
    assert logged["distill_loss"] > 0


def test_a_batch_without_representatives_has_the_task_loss_alone(both):
    taught = both.student(THRESH, 1.0)
    loss, logged = train_step(taught, both.batch())
    assert (logged["distill_loss"], logged["num_representatives"]) == (0, 0)
    config = both.student_config()
    del config.MODEL["DISTILL"]
    torch.manual_seed(1)
    plain, _ = train_step(both.theirs(config, training=True), both.batch())
    assert torch.equal(loss, plain)
    assert "distill_loss" not in config.MODEL


def test_a_frame_without_voxels_trains_beside_one_that_has_some(both):
    batch = both.batch()
    second = batch.voxel_coords[:, 0] == 1
    fields = ("voxels", "voxel_coords", "voxel_num_points")
    batch = replace(batch, **{name: getattr(batch, name)[second] for name in fields})
    model = both.student()
    train_step(model, batch)
    with torch.inference_mode():
        found, _ = model.eval()(to_batch_dict(batch))
    assert all(torch.isfinite(frame["pred_boxes"]).all() for frame in found)


def test_logits_that_are_no_numbers_are_an_error_that_says_whose_they_are(both):
    model = both.student()
    nn.init.constant_(model.dense_head.conv_cls.bias, torch.nan)
    with pytest.raises(
        FloatingPointError, match="of the student's class logits are NaN or infinite; lower the learning"
    ):
        model(both.batch_dict())
    model = both.student()
    nn.init.constant_(model._distillation.teacher._module.roi_head.cls_pred_layer.bias, torch.nan)
    with pytest.raises(FloatingPointError, match="of the teacher's second-stage logits are NaN .* checkpoint"):
        model(both.batch_dict())


def test_a_step_under_autocast_is_finite_and_near_that_in_float32(both):
    exact, _ = train_step(both.student(), both.batch())
    model = both.student()
    with torch.autocast("cpu", torch.bfloat16):
        loss, logged, _ = model_fn_decorator()(model, both.batch_dict())
        assert model.dense_head.forward_ret_dict["cls_preds"].dtype == torch.bfloat16
    loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert float(loss.detach()) == pytest.approx(float(exact), rel=0.05)
    assert min(logged["distill_loss"], logged["iou_loss"]) > 0
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found, _ = model.eval()(both.batch_dict())
    assert all(torch.isfinite(frame["pred_boxes"]).all() for frame in found)


def test_two_ranks_have_the_loss_and_gradients_of_one_even_when_one_has_no_representative(both, tmp_path):
    """A frame a process; norms keep their statistics, so that only the mean over processes can differ."""
    batch = both.batch()
    state = seasoned(both.student(), batch).state_dict()
    alone = both.student()
    alone.load_state_dict(state)
    config = both.student_config(THRESH, threshold_between(frozen_norms(alone), batch))
    alone = both.theirs(config, training=True)
    alone.load_state_dict(state)
    frozen_norms(alone)
    torch.save(
        {"model": config.MODEL, "state": state, "batch": batch, "dataset": both.dataset(True)}, tmp_path / "job.pth"
    )
    loss, logged = train_step(alone, batch)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script, folders = Path(__file__).with_name("one_rank.py"), [entry for entry in sys.path if entry]
    done = subprocess.run(
        [*words, str(script), str(tmp_path)], timeout=TIMEOUT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(folders)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    ranks = [torch.load(tmp_path / f"rank_{rank}.pth") for rank in (0, 1)]
    assert sorted(rank["num_representatives"] > 0 for rank in ranks) == [False, True]
    assert sum(rank["loss"] for rank in ranks) / 2 == pytest.approx(float(loss), rel=1e-5)
    assert sum(rank["distill_loss"] for rank in ranks) / 2 == pytest.approx(logged["distill_loss"], rel=1e-5)
    for name, parameter in alone.named_parameters():
        one, two = (rank["gradients"][name] for rank in ranks)
        assert torch.equal(one, two), name
        assert (one - parameter.grad).abs().max() <= 1e-4 * parameter.grad.abs().max() + 1e-7, name
    assert set(ranks[0]["keys"]) == {f"module.{key}" for key in alone.state_dict()}
