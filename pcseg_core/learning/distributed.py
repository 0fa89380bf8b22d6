# SPDX-License-Identifier: Apache-2.0
"""Training with several processes: the results are those of one process on the whole batch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather, all_reduce

from pcseg_core.sparse import BatchNorm


def ranks() -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) without torchrun."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


@contextmanager
def first_process_first(gpu: bool) -> Iterator[None]:
    """Run a block in the first process of torchrun before all others, which then use its files."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and not dist.is_initialized():
        # Preparing a large recording takes hours; the default timeout is half an hour.
        dist.init_process_group("nccl" if gpu else "gloo", timeout=timedelta(days=2))
    if rank > 0:
        dist.barrier()
    try:
        yield
    finally:
        if rank == 0 and world > 1:
            dist.barrier()


def gather_rows(rows: Tensor) -> Tensor:
    """Rows (n, ...) of all processes, by rank, with gradients.

    A loss over gathered rows is the same in every process. Its gradients are summed over the
    processes, and data-parallel training divides by their number.
    """
    _, world = ranks()
    if world == 1:
        return rows
    sizes = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world)]
    dist.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    longest = int(max(sizes))
    padded = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
    if rows.is_floating_point():
        parts = list(all_gather(padded.contiguous()))
    else:
        parts = [torch.zeros_like(padded) for _ in range(world)]
        dist.all_gather(parts, padded.contiguous())
    return torch.cat([part[: int(size)] for part, size in zip(parts, sizes)])


class SyncedBatchNorm(BatchNorm):
    """Batch norm over the voxels of all processes, on any device (that of torch needs CUDA)."""

    def normalize(self, feats: Tensor) -> Tensor:
        """Normalize (M, C) features by the statistics over the voxels of all processes."""
        if not self.training or ranks()[1] == 1:
            return super().normalize(feats)
        count = feats.new_full((1,), float(len(feats)))
        sums = all_reduce(torch.cat([feats.sum(0), feats.square().sum(0), count]))
        channels, total = feats.shape[1], sums[-1]
        mean = sums[:channels] / total
        variance = (sums[channels:-1] / total - mean.square()).clamp_min(0)
        self._remember(mean.detach(), variance.detach() * total.detach() / (total.detach() - 1))
        scaled: Tensor = (feats - mean) * torch.rsqrt(variance + self.eps)
        return torch.addcmul(self.bias, scaled, self.weight)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        momentum = 0.1 if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1


def synchronize(module: nn.Module) -> None:
    """Replace every batch norm in a module by one over all processes; names do not change."""
    for name, child in module.named_children():
        if type(child) is BatchNorm:
            synced = SyncedBatchNorm(child.num_features, child.eps, child.momentum)
            synced.load_state_dict(child.state_dict())
            setattr(module, name, synced)
        else:
            synchronize(child)
