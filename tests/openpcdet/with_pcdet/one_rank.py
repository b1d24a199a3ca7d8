"""One of the processes of a training step: torchrun one_rank.py FOLDER reads job.pth there and leaves rank_N.pth."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import cakdp_ext  # noqa: F401 (before pcdet)
from cakdp_ext.openpcdet.batches import to_batch_dict


def own_frame(batch, rank):
    mine = batch.voxel_coords[:, 0] == rank
    coords = batch.voxel_coords[mine].clone()
    coords[:, 0] = 0
    return replace(
        batch,
        batch_size=1,
        voxels=batch.voxels[mine],
        voxel_coords=coords,
        voxel_num_points=batch.voxel_num_points[mine],
        gt_boxes=batch.gt_boxes[rank : rank + 1],
        gt_labels=batch.gt_labels[rank : rank + 1],
        frame_ids=batch.frame_ids[rank : rank + 1],
        points=None,
        meta=(),
    )


def step(folder, rank):
    from pcdet.models import build_network, model_fn_decorator

    job = torch.load(folder / "job.pth", weights_only=False)
    model = build_network(model_cfg=job["model"], num_class=3, dataset=job["dataset"]).train()
    model.load_state_dict(job["state"])
    with torch.no_grad():
        next(model.parameters()).add_(rank)  # DDP sends the first process's parameters to the others
    on_cuda_only = {"device_ids": [rank]} if os.environ.get("CAKDP_OPENPCDET_CPU") == "1" else {}
    parallel = DistributedDataParallel(model, **on_cuda_only)  # as OpenPCDet says it
    for module in parallel.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    loss, logged, _ = model_fn_decorator()(parallel, to_batch_dict(own_frame(job["batch"], rank)))
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    found = {"loss": loss.item(), "gradients": gradients, "keys": list(parallel.state_dict()), **logged}
    torch.save(found, folder / f"rank_{rank}.pth")


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("nccl" if os.environ.get("CAKDP_OPENPCDET_CPU") == "1" else "gloo")
    step(Path(sys.argv[1]), dist.get_rank())
    dist.destroy_process_group()
