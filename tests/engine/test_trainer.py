"""The loop itself: what a step does to the weights, what is logged, what is kept."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tiny_world import scalars
from torch import nn
from torch.utils.data import DataLoader

from cakdp_ext.checkpoint import CheckpointError, read_checkpoint
from cakdp_ext.contract import TrainingOutput
from cakdp_ext.engine.data import EpochSampler
from cakdp_ext.engine.distributed import Workers
from cakdp_ext.engine.runs import RunFolder
from cakdp_ext.engine.schedule import OptimizationConfig, build_optimizer, build_schedule
from cakdp_ext.engine.step import TrainingStep
from cakdp_ext.engine.trainer import Trainer, TrainOptions
from cakdp_ext.types import Batch

PLACE = Workers(0, 1, torch.device("cpu"))
NUM_FRAMES, BATCH_SIZE = 6, 2
STEPS = NUM_FRAMES // BATCH_SIZE


class Frames(torch.utils.data.Dataset):
    """Frame i holds one voxel with the features (i, 1, 2)."""

    def __len__(self):
        return NUM_FRAMES

    def __getitem__(self, position):
        return position[1]


def collate(indices):
    features = torch.tensor([[float(i), 1.0, 2.0] for i in indices])
    count = len(indices)
    return Batch(
        batch_size=count,
        voxels=features[:, None],
        voxel_coords=torch.zeros(count, 4, dtype=torch.int32),
        voxel_num_points=torch.ones(count, dtype=torch.int32),
        gt_boxes=torch.zeros(count, 0, 7),
        gt_labels=torch.zeros(count, 0, dtype=torch.int64),
        frame_ids=tuple(f"{i:06d}" for i in indices),
    )


class Student(nn.Module):
    """Two losses of one linear layer: ``scale * w x`` and ``w``'s squared length."""

    def __init__(self, scale=1.0, bad_frame=None):
        super().__init__()
        self.scale, self.bad_frame = scale, bad_frame
        self.layer = nn.Linear(3, 1, bias=False)
        nn.init.constant_(self.layer.weight, 0.5)
        self.dtypes = set()

    def forward(self, batch):
        out = self.layer(batch.voxels[:, 0])
        self.dtypes.add(out.dtype)
        losses = {"pull": self.scale * out.mean(), "decay": self.layer.weight.square().sum()}
        if self.bad_frame in batch.frame_ids:
            losses["pull"] = losses["pull"] * float("nan")
        return TrainingOutput(losses)


def trainer(folder, student, *, optimization=None, batch_size=BATCH_SIZE, **options):
    dataset = Frames()
    sampler = EpochSampler(len(dataset), PLACE, seed=0, batch_size=batch_size)
    loader = DataLoader(dataset, batch_size, sampler=sampler, collate_fn=collate)
    options = TrainOptions(**{"epochs": 1, "log_every": 1, **options})
    optimization = optimization or OptimizationConfig(lr=0.01)
    return Trainer(TrainingStep(student), loader, sampler, PLACE, RunFolder(folder), optimization, options)


def weights(model):
    return model.layer.weight.detach().clone()


class SteepStudent(Student):
    """Its loss is finite everywhere, its gradient is not."""

    def forward(self, batch):
        root = (self.layer.weight * 0).square().sum().sqrt()
        return TrainingOutput({**super().forward(batch).losses, "root": root})


class NormedStudent(Student):
    """Its outputs go through a norm."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, batch):
        return TrainingOutput({"pull": self.norm(self.layer(batch.voxels[:, 0])).square().mean()})


@pytest.mark.parametrize("clip", [0.0, 10.0])
def test_gradient_that_is_not_finite_stops_before_the_step_and_names_its_frames(tmp_path, clip):
    first = [f"{index:06d}" for _, index in EpochSampler(NUM_FRAMES, PLACE, 0, BATCH_SIZE)][:BATCH_SIZE]
    student = SteepStudent()
    loop = trainer(tmp_path, student, optimization=OptimizationConfig(lr=0.01, grad_norm_clip=clip))
    with pytest.raises(FloatingPointError, match=f"gradient is not finite at iteration 0 in frames {', '.join(first)}"):
        loop.fit()
    assert torch.equal(weights(student), torch.full((1, 3), 0.5))
    assert loop.run.checkpoints() == []


def test_loss_that_is_not_finite_names_loss_and_frames_and_stops_before_the_step(tmp_path):
    order = [f"{index:06d}" for _, index in EpochSampler(NUM_FRAMES, PLACE, 0, BATCH_SIZE)]
    second = order[BATCH_SIZE : 2 * BATCH_SIZE]
    student = Student(bad_frame=second[0])
    loop = trainer(tmp_path, student, save_seconds=0.0)
    with pytest.raises(FloatingPointError) as caught:
        loop.fit()
    message = str(caught.value)
    assert message.startswith("loss is nan at iteration 1 (pull nan, decay ")
    assert f"in frames {', '.join(second)}; lower OPTIMIZATION.LR" in message
    saved = read_checkpoint(tmp_path / "ckpt" / "latest_model.pth")
    assert saved["it"] == 1
    assert torch.equal(saved["model_state"]["layer.weight"], weights(student))
    assert torch.isfinite(weights(student)).all()
    assert loop.run.checkpoints() == []


@pytest.mark.parametrize(("clip", "expected"), [(10.0, 10.0), (0.5, 0.5), (0.0, None)])
def test_gradient_is_clipped_to_the_configured_norm(tmp_path, clip, expected):
    student = Student(scale=1000.0)
    loop = trainer(tmp_path, student, optimization=OptimizationConfig(lr=0.01, grad_norm_clip=clip))
    batch = collate([3, 5])
    loop.train_step(batch)
    norm = float(student.layer.weight.grad.norm())
    by_hand = torch.tensor([1000 * 4.0 + 1, 1000 * 1.0 + 1, 1000 * 2.0 + 1]).norm()  # mean x = (4, 1, 2), and 2 w
    assert norm == pytest.approx(float(by_hand) if expected is None else expected, rel=1e-4)


def test_gradient_below_the_limit_is_left_alone(tmp_path):
    student = Student()
    trainer(tmp_path, student, optimization=OptimizationConfig(lr=0.01, grad_norm_clip=10.0)).train_step(
        collate([3, 5])
    )
    torch.testing.assert_close(student.layer.weight.grad, torch.tensor([[5.0, 2.0, 3.0]]))


def test_first_step_is_adamw_by_hand(tmp_path):
    student = Student()
    loop = trainer(tmp_path, student, optimization=OptimizationConfig(lr=0.1, weight_decay=0.2, div_factor=10.0))
    loop.train_step(collate([3, 5]))
    decayed = 0.5 * (1 - 0.01 * 0.2)  # decoupled decay at the first learning rate, 0.1 / 10
    torch.testing.assert_close(weights(student), torch.full((1, 3), decayed - 0.01))  # Adam's first step is its rate


def test_losses_their_sum_and_the_rate_of_each_step_are_logged(tmp_path):
    student = Student(scale=2.0)
    loop = trainer(tmp_path, student, optimization=OptimizationConfig(lr=1e-6))
    loop.fit()
    found = scalars(tmp_path / "tensorboard")
    assert set(found) == {"train/loss", "train/pull", "train/decay", "meta_data/learning_rate"}
    order = [index for _, index in EpochSampler(NUM_FRAMES, PLACE, 0, BATCH_SIZE)]
    means = [sum(order[i : i + 2]) / 2 for i in range(0, NUM_FRAMES, 2)]
    for step, mean in enumerate(means):  # with w = 0.5: 2 * 0.5 * (mean + 1 + 2)
        assert found["train/pull"][step] == (step + 1, pytest.approx(mean + 3, rel=1e-4))
        assert found["train/decay"][step] == (step + 1, pytest.approx(0.75, rel=1e-4))
        assert found["train/loss"][step] == (step + 1, pytest.approx(mean + 3.75, rel=1e-4))
    rates = [value for _, value in found["meta_data/learning_rate"]]
    assert rates[0] == pytest.approx(1e-7)
    assert rates[-1] == pytest.approx(1e-11, rel=1e-3)


def test_log_interval_thins_out_tensorboard(tmp_path):
    trainer(tmp_path, Student(), epochs=4, log_every=5).fit()
    steps = [step for step, _ in scalars(tmp_path / "tensorboard")["train/loss"]]
    assert steps == [1, 4, 5, 7, 10]  # the first of each epoch of three, and every fifth


def by_hand(step, total, lr, pct_start, div_factor):
    """One cosine up from lr / div_factor, one cosine down to lr / div_factor / 10000."""
    first, last, peak = lr / div_factor, lr / div_factor / 1e4, pct_start * total - 1
    start, end, at = (first, lr, step / peak) if step <= peak else (lr, last, (step - peak) / (total - 1 - peak))
    return end + (start - end) * (1 + math.cos(math.pi * at)) / 2


@pytest.mark.parametrize(("total", "pct_start"), [(10, 0.4), (40, 0.4), (100, 0.25), (50, 0.5)])
def test_one_cycle_rates_and_opposite_momentum_by_hand(total, pct_start):
    config = OptimizationConfig(lr=0.003, pct_start=pct_start, div_factor=10.0, moms=(0.95, 0.85))
    model = nn.Linear(1, 1)
    optimizer = build_optimizer(model, config)
    schedule = build_schedule(optimizer, config, total)
    rates, momenta = [], []
    for _ in range(total):
        group = optimizer.param_groups[0]
        rates.append(group["lr"])
        momenta.append(group["betas"][0])
        assert group["betas"][1] == 0.99
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([by_hand(i, total, 0.003, pct_start, 10.0) for i in range(total)], rel=1e-5)
    peak = round(pct_start * total) - 1
    assert (rates[0], rates[peak], rates[-1]) == pytest.approx((0.0003, 0.003, 0.0003 / 1e4))
    assert max(range(total), key=rates.__getitem__) == peak == min(range(total), key=momenta.__getitem__)
    assert (momenta[0], momenta[peak], momenta[-1]) == pytest.approx((0.95, 0.85, 0.95))


@pytest.mark.parametrize(
    ("total", "pct_start"), [(1, 0.4), (2, 0.4), (2, 0.5), (3, 0.4), (4, 0.25), (10, 0.1), (5, 0.0)]
)
def test_short_trainings_and_rises_of_one_step_do_not_divide_by_zero(total, pct_start):
    config = OptimizationConfig(lr=1.0, pct_start=pct_start)
    optimizer = build_optimizer(nn.Linear(1, 1), config)
    schedule = build_schedule(optimizer, config, total)
    for _ in range(total):
        assert 0 < optimizer.param_groups[0]["lr"] <= 1
        optimizer.step()
        schedule.step()


def test_another_optimizer_is_refused():
    with pytest.raises(ValueError, match="OPTIMIZER 'sgd' is not known to the built-in engine; use adam_onecycle"):
        OptimizationConfig(optimizer="sgd")


def test_frozen_parameters_are_not_optimised():
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    model[0].requires_grad_(False)
    (group,) = build_optimizer(model, OptimizationConfig()).param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in model[1].parameters()]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"epochs": 5, "keep_last": 2}, [4, 5]),
        ({"epochs": 5, "save_every": 2}, [2, 4, 5]),
        ({"epochs": 5, "save_every": 2, "keep_last": 1}, [5]),
        ({"epochs": 2}, [1, 2]),
    ],
)
def test_epoch_checkpoints_that_stay(tmp_path, options, expected):
    loop = trainer(tmp_path, Student(), **options)
    loop.fit()
    assert [read_checkpoint(path)["epoch"] for path in loop.run.checkpoints()] == expected
    assert {path.name for path in loop.run.ckpt.iterdir()} == {f"checkpoint_epoch_{i}.pth" for i in expected}


def test_amp_on_cpu_computes_in_bfloat16_and_keeps_float32_weights(tmp_path):
    student, exact = Student(), Student()
    trainer(tmp_path / "amp", student, use_amp=True).fit()
    trainer(tmp_path / "exact", exact).fit()
    assert (student.dtypes, exact.dtypes) == ({torch.bfloat16}, {torch.float32})
    assert student.layer.weight.dtype == torch.float32
    torch.testing.assert_close(weights(student), weights(exact), atol=1e-3, rtol=0)
    assert not torch.equal(weights(student), torch.full((1, 3), 0.5))


@pytest.mark.parametrize("name", ["epochs", "save_every", "keep_last", "log_every"])
def test_options_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} of a training must be at least 1, got 0"):
        replace(TrainOptions(epochs=1), **{name: 0})


def test_stopped_after_the_last_step_of_an_epoch_repeats_no_step(tmp_path):
    whole, other = Student(), Student()
    loop = trainer(tmp_path / "whole", whole, epochs=2)
    loop.fit()
    stopped = trainer(tmp_path / "other", other, epochs=2, save_seconds=0.0)
    stopped._finish_epoch = lambda epoch: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    again = Student()
    resumed = trainer(tmp_path / "other", again, epochs=2)
    assert resumed.resume()
    assert (resumed.position.epoch, resumed.position.step_in_epoch) == (0, STEPS)
    resumed.fit()
    assert torch.equal(weights(again), weights(whole))
    assert read_checkpoint(tmp_path / "other")["it"] == 2 * STEPS


def test_steps_that_a_resume_takes_again_are_shown_once(tmp_path):
    stopped, folder = trainer(tmp_path, Student()), tmp_path / "tensorboard"

    def save_the_first_and_stop_at_the_second():
        if stopped.position.iteration == 2:
            raise KeyboardInterrupt
        stopped.save(stopped.run.ckpt / "latest_model.pth")

    stopped._save_in_time = save_the_first_and_stop_at_the_second
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    assert [step for step, _ in scalars(folder)["train/loss"]] == [1, 2]
    (events,) = folder.iterdir()
    events.rename(folder / "events.out.tfevents.0")  # files are told apart by the second that they were made in
    resumed = trainer(tmp_path, Student())
    assert resumed.resume()
    resumed.fit()
    assert [step for step, _ in scalars(folder)["train/loss"]] == [1, 2, 3]


def test_a_named_checkpoint_is_gone_on_from_instead_of_the_newest(tmp_path):
    whole, again = Student(), Student()
    trainer(tmp_path, whole, epochs=3).fit()
    loop = trainer(tmp_path, again, epochs=3)
    assert loop.resume(tmp_path / "ckpt" / "checkpoint_epoch_1.pth")
    assert (loop.position.epoch, loop.position.iteration) == (1, STEPS)
    loop.fit()
    assert torch.equal(weights(again), weights(whole))
    with pytest.raises(
        CheckpointError, match=r"the checkpoint to resume .*checkpoint_epoch_1\.pth belongs to a training"
    ):
        trainer(tmp_path, Student(), epochs=4).resume(tmp_path / "ckpt" / "checkpoint_epoch_1.pth")


@pytest.mark.parametrize(("norm", "takes_part"), [(nn.BatchNorm1d, False), (nn.SyncBatchNorm, True)])
def test_every_process_measures_norms_again_that_are_synchronised(tmp_path, norm, takes_part):
    student = NormedStudent(norm(1))
    loop = trainer(tmp_path, student, optimization=OptimizationConfig(lr=0.01, bn_calibration_steps=2))
    loop.place = replace(PLACE, rank=1, world_size=2)
    loop._calibrate(1)
    assert bool(student.norm.num_batches_tracked) == takes_part


def test_resume_refuses_another_batch_size_though_the_steps_are_as_many(tmp_path):
    trainer(tmp_path, Student(), batch_size=4).fit()
    with pytest.raises(CheckpointError, match="a training of 2 steps of 4 frames, this one has 2 of 5; keep epochs"):
        trainer(tmp_path, Student(), batch_size=5).resume()
