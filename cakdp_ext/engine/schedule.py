"""Optimizer and learning-rate schedule from OpenPCDet's ``OPTIMIZATION`` section."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR


@dataclass(frozen=True)
class OptimizationConfig:
    """OpenPCDet's ``OPTIMIZATION`` keys; those of its other optimizers are read and not used.

    Attributes:
        optimizer: ``adam_onecycle``: decoupled weight decay with a cosine one-cycle schedule.
        lr: highest learning rate.
        moms: highest and lowest first Adam coefficient.
        pct_start: share of the steps that the learning rate rises.
        div_factor: highest over first learning rate.
        grad_norm_clip: largest gradient norm; 0 does not clip.
        bn_calibration_steps: batches that batch norm is measured on again after the last epoch; 0, OpenPCDet's way,
            leaves it. For trainings of a few hundred steps.
    """

    batch_size_per_gpu: int = 4
    num_epochs: int = 80
    optimizer: str = "adam_onecycle"
    lr: float = 0.003
    weight_decay: float = 0.01
    momentum: float = 0.9
    moms: tuple[float, float] = (0.95, 0.85)
    pct_start: float = 0.4
    div_factor: float = 10.0
    decay_step_list: tuple[int, ...] = ()
    lr_decay: float = 0.1
    lr_clip: float = 1e-7
    lr_warmup: bool = False
    warmup_epoch: int = 1
    grad_norm_clip: float = 10.0
    bn_calibration_steps: int = 0

    def __post_init__(self) -> None:
        if self.optimizer != "adam_onecycle":
            raise ValueError(f"OPTIMIZER {self.optimizer!r} is not known to the built-in engine; use adam_onecycle")
        for name in ("batch_size_per_gpu", "num_epochs", "lr"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name.upper()} must be positive, got {getattr(self, name)}")
        if not 0 <= self.pct_start < 1:
            raise ValueError(f"PCT_START must be at least 0 and below 1, got {self.pct_start}")


def build_optimizer(model: nn.Module, config: OptimizationConfig) -> Optimizer:
    """AdamW over every trainable parameter."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    return AdamW(trainable, lr=config.lr, betas=(config.moms[0], 0.99), weight_decay=config.weight_decay)


def build_schedule(optimizer: Optimizer, config: OptimizationConfig, total_steps: int) -> LRScheduler:
    """One cycle over ``total_steps`` optimizer steps; momentum runs against the learning rate.

    The rise ends a hair early: PyTorch divides by zero where it lasts exactly one step.
    """
    return OneCycleLR(
        optimizer,
        max_lr=config.lr,
        total_steps=max(total_steps, 2),
        pct_start=config.pct_start * (1 - 1e-9),
        base_momentum=config.moms[1],
        max_momentum=config.moms[0],
        div_factor=config.div_factor,
        final_div_factor=1e4,
    )
