"""Batch norm's running statistics, measured again with the weights that a training ends with.

With the momentum of OpenPCDet's networks, 0.01, the statistics remember some hundred steps. A training of a few hundred
steps therefore ends with statistics of weights that are gone, and its detector is worse in eval mode than it need be.

Source: Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021, section 3 (PreciseBN).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cakdp_ext.types import Batch


def calibrate_batch_norm(model: nn.Module, batches: Iterable[Batch]) -> int:
    """Replace the running statistics by the plain average over batches; weights and random state stay as they are.

    Args:
        model: detector; is left in training mode.
        batches: as in training, augmented, on the model's device; none leaves the statistics alone.

    Returns:
        The number of batches.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    momenta, count = [norm.momentum for norm in norms], 0
    model.train()
    try:
        with torch.no_grad(), torch.random.fork_rng():
            for batch in batches:
                if count == 0:
                    for norm in norms:
                        norm.reset_running_stats()
                        norm.momentum = None  # PyTorch's way to say: the average of all batches since the reset
                model(batch)
                count += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return count
