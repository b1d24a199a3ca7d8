"""A network as if trained, and a plan as if scored."""

from __future__ import annotations

import numpy as np
import torch

from cakdp_ext.pruning import architecture_fingerprint
from cakdp_ext.types import PruningPlan


def random_plan(graph, keep, seed=0):
    """Keep random groups of filters, at least one filter a layer."""
    rng = np.random.default_rng(seed)
    kept = {layer.name: set() for layer in graph.prunable}
    for number in rng.permutation(len(graph.groups)):
        if rng.random() < keep or any(not kept[f.layer] for f in graph.groups[number]):
            for layer, channel in graph.groups[number]:
                kept[layer].add(channel)
    totals = {layer.name: layer.num_filters for layer in graph.prunable}
    return PruningPlan({n: tuple(sorted(k)) for n, k in kept.items()}, totals, architecture_fingerprint(graph))


def randomize_norms(model):
    """Give every norm statistics and an affine map of its own, as training would."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (module.running_mean, -0.2, 0.2), (module.running_var, 0.5, 2.0),
                (module.weight.data, 0.5, 1.5), (module.bias.data, -0.3, 0.3),
            ):  # fmt: skip
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
