# SPDX-License-Identifier: Apache-2.0
"""Training with several processes: the results are those of one process on the whole batch."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.nn.functional import all_gather, all_reduce
from torch.distributed.rendezvous import rendezvous

from pcseg_core.errors import InputError, PcsegError
from pcseg_core.learning.run_folder import is_first_process
from pcseg_core.sparse import BatchNorm

T = TypeVar("T")

# Preparing large recordings takes hours; a step of the training ends in torch's half an hour.
_PREPARING = timedelta(days=2)
_JOINING_S = 1800.0
_ASKED_S = 0.05


def processes() -> int:
    """Number of processes that torchrun or Ray Train started, 1 without them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def ranks() -> tuple[int, int]:
    """Rank of this process and number of processes, once they are joined; else (0, 1)."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def join(gpu: bool) -> None:
    """Make the processes of torchrun one group, each with a GPU of its own or none."""
    if processes() == 1:
        return
    if not dist.is_initialized():  # Ray Train has done it
        if gpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        store, rank, world = next(rendezvous("env://"))
        store = PrefixStore(agreed_start(store, rank, world), store)
        dist.init_process_group("nccl" if gpu else "gloo", store=store, rank=rank, world_size=world)
    _patient()  # now, while no process is busy: they connect within seconds or not at all


def agreed_start(store: Store, rank: int, world: int) -> str:
    """A name that the processes of this start, and none before, agree on.

    Where torchrun starts the processes again, its store still holds the addresses of those before:
    a process that comes first would connect to one that is no more.

    Raises:
        PcsegError: not all processes came in time.
    """
    own, end = secrets.token_hex(8), time.monotonic() + _JOINING_S
    others = range(1, world)
    while time.monotonic() < end:
        if rank == 0:
            store.set("pcseg/start", own)
            if store.check([f"pcseg/{own}/{other}" for other in others]):
                came = [store.get(f"pcseg/{own}/{other}") for other in others]
                store.set(f"pcseg/{own}/all", " ".join(one.decode() for one in came))
                return own
        elif store.check(["pcseg/start"]):
            start = store.get("pcseg/start").decode()
            store.set(f"pcseg/{start}/{rank}", own)
            known = f"pcseg/{start}/all"
            if store.check([known]) and own.encode() in store.get(known).split():
                return start
        time.sleep(_ASKED_S)
    raise PcsegError(f"not all {world} processes started within {_JOINING_S / 60:.0f} minutes")


@contextmanager
def first_process_first() -> Iterator[None]:
    """Run a block in the first of joined processes before all others, which then use its files."""
    if not is_first_process():
        wait_for_all()
    try:
        yield
    finally:
        if is_first_process():
            wait_for_all()


def wait_for_all() -> None:
    """Wait until all processes call this, two days at most."""
    if ranks()[1] > 1:
        dist.barrier(_patient())


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, in all processes."""
    rank, world = ranks()
    if world == 1:
        return make()
    found: list[T | None] = [make() if rank == 0 else None]
    dist.broadcast_object_list(found, 0, _patient())
    return cast(T, found[0])


def from_all(own: T) -> list[T]:
    """The object of each process, by rank, in all processes."""
    world = ranks()[1]
    if world == 1:
        return [own]
    found: list[T | None] = [None] * world
    dist.all_gather_object(found, own, _patient())
    return cast("list[T]", found)


@cache
def _patient() -> dist.ProcessGroup:
    """All processes, for work that takes long; on the CPU."""
    group = dist.new_group(timeout=_PREPARING, backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    return group


def check_batch(batch_size: int, world: int, together: int = 1) -> None:
    """Check that all processes have a share in a batch.

    Args:
        batch_size: sectors in it.
        world: number of processes.
        together: sectors that one process takes at a time.

    Raises:
        InputError: there are more processes than sectors, or groups of them.
    """
    groups = -(-batch_size // together)
    if groups < world:
        raise InputError(
            f"optimizer.batch_size {batch_size} gives {groups} of {world} processes something to "
            f"do; give at least {world * together}"
        )


def gather_rows(rows: Tensor) -> Tensor:
    """Rows (n, ...) of all processes, by rank, with gradients.

    A loss over gathered rows is the same in every process. Its gradients are summed over the
    processes, and data-parallel training divides by their number.
    """
    world = ranks()[1]
    if world == 1:
        return rows
    sizes = _sizes(len(rows), rows.device)
    longest = max(sizes)
    padded = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
    if rows.is_floating_point():
        parts = list(all_gather(padded.contiguous()))
    else:
        parts = [torch.zeros_like(padded) for _ in range(world)]
        dist.all_gather(parts, padded.contiguous())
    return torch.cat([part[:size] for part, size in zip(parts, sizes)])


def rows_before(count: int, device: torch.device) -> tuple[int, int]:
    """Number of rows of the processes of lower rank, and of all, where this one has `count`."""
    rank, world = ranks()
    sizes = [count] if world == 1 else _sizes(count, device)
    return sum(sizes[:rank]), sum(sizes)


def _sizes(count: int, device: torch.device) -> list[int]:
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(ranks()[1])]
    dist.all_gather(sizes, torch.tensor([count], device=device))
    return [int(size) for size in sizes]


def normalize_over_all(norm: nn.BatchNorm1d, feats: Tensor) -> Tensor:
    """Normalize (M, C) features by the statistics over the rows of all processes.

    Args:
        norm: its parameters, and its running statistics, which are updated.
        feats: of this process.
    """
    wide = feats.float()
    count = wide.new_full((1,), float(len(wide)))
    sums = all_reduce(torch.cat([wide.sum(0), wide.square().sum(0), count]))
    channels, total = wide.shape[1], sums[-1]
    mean = sums[:channels] / total
    variance = (sums[channels:-1] / total - mean.square()).clamp_min(0)
    _remember(norm, mean.detach(), variance.detach() * total.detach() / (total.detach() - 1))
    scaled: Tensor = (wide - mean) * torch.rsqrt(variance + norm.eps)
    return torch.addcmul(norm.bias, scaled, norm.weight).to(feats.dtype)


def _remember(norm: nn.BatchNorm1d, mean: Tensor, variance: Tensor) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    momentum = 0.1 if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean, momentum)
    norm.running_var.lerp_(variance, momentum)
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked += 1


class SyncedBatchNorm(BatchNorm):
    """Batch norm over the voxels of all processes, on any device (that of torch needs CUDA)."""

    def normalize(self, feats: Tensor) -> Tensor:
        """Normalize (M, C) features by the statistics over the voxels of all processes."""
        if not self.training or ranks()[1] == 1:
            return super().normalize(feats)
        return normalize_over_all(self, feats)


class SyncedBatchNorm1d(nn.BatchNorm1d):
    """The same for features (M, C) that are no sparse tensor."""

    def forward(self, feats: Tensor) -> Tensor:
        """See `SyncedBatchNorm.normalize`."""
        if not self.training or ranks()[1] == 1:
            return super().forward(feats)
        return normalize_over_all(self, feats)


_SYNCED: dict[type[nn.Module], type[nn.BatchNorm1d]] = {
    BatchNorm: SyncedBatchNorm,
    nn.BatchNorm1d: SyncedBatchNorm1d,
}


def synchronize(module: nn.Module) -> None:
    """Replace every batch norm in a module by one over all processes.

    Parameters and buffers are the same objects as before, under the same names.
    """
    for name, child in module.named_children():
        kind = _SYNCED.get(type(child))
        if kind is None:
            synchronize(child)
            continue
        assert isinstance(child, nn.BatchNorm1d)
        synced = kind(child.num_features, child.eps, child.momentum)
        synced.weight, synced.bias = child.weight, child.bias
        for key, buffer in child.named_buffers():
            setattr(synced, key, buffer)
        setattr(module, name, synced.train(child.training))
