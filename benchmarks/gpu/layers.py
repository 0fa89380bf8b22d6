# SPDX-License-Identifier: Apache-2.0
"""Single layers, kernel maps and voxels on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.engine_cases import Grid, build_maps
from benchmarks.gpu.inputs import VOXELS_M, grid
from benchmarks.gpu.machine import Action, Machine, Row, in_turns, quantiles
from benchmarks.gpu.networks import add_ratios, precision_of
from pcseg_core.sparse import mean_features, voxelize
from pcseg_core.sparse.backends import torch_backend, torchsparse_backend, triton_backend
from pcseg_core.sparse.maps import KernelMap

# Level, channels in and out, kernel, step: the layers of MinkUNet34 at full width and its entry.
_LAYERS = ((0, 32, 32, 3, 1), (0, 96, 96, 3, 1), (1, 96, 96, 3, 1), (2, 128, 128, 3, 1))
_LAYERS += ((4, 256, 256, 3, 1), (0, 32, 32, 2, 2))
_ENGINES = ("torch fp32", "torch tf32", "torch fp16", "triton fp32", "triton tf32x3", "triton tf32")
_ENGINES += ("triton fp16", "triton bf16", "triton fp16 unsorted")
_PEERS = ("torchsparse fp32", "torchsparse fp16")
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def convolutions(machine: Machine, points: np.ndarray) -> Iterator[Row]:
    """Forward and backward of layers on known kernel maps: time on the GPU and TFLOP/s."""
    made = grid(points, VOXELS_M[0], machine.device)
    cache = made.tensor("torch" if machine.device.type == "cpu" else "auto").cache
    for level, cin, cout, kernel_size, stride in _LAYERS[:: 5 if machine.quick else 1]:
        kernel_map = cache.kernel_map(1 << level, kernel_size, stride)
        pairs = int((kernel_map.table >= 0).sum())
        label: Row = {
            "kind": "layer",
            "layer": f"{cin}->{cout} kernel {kernel_size}",
            "level": level,
        }
        label |= {"voxels": kernel_map.n_out, "pairs_per_row": pairs / kernel_map.n_out}
        gflop = 2e-9 * pairs * cin * cout
        for way, factor in (("forward", 1), ("backward", 2)):
            rows = _rows(machine, label | {"way": way}, kernel_map, (cin, cout))
            for row in rows.values():
                if row.get("p50_ms"):
                    row["tflops"] = factor * gflop / row["p50_ms"]
            add_ratios(rows)
            yield from rows.values()


def _rows(
    machine: Machine, label: Row, kernel_map: KernelMap, channels: tuple[int, int]
) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for name in (*_ENGINES, *_PEERS):
        backend, precision, *rest = name.split()
        if not machine.usable(backend) or _left_out(machine, precision, label):
            continue
        rows[name] = {**label, "engine": name, "precision": precision}
        try:
            used = _unsorted(kernel_map) if rest else kernel_map
            action = _action(machine, name, used, channels, label["way"])
            with precision_of(precision):
                action()
                times = [machine.wall_ms(action) for _ in range(5)]
                rows[name] |= {"p50_ms": min(times), "wall_ms": min(times)}
                # Backward passes run on the stream of the forward pass: no graph holds them.
                forward = label["way"] == "forward" and backend in ("torch", "triton")
                replayed = machine.device_ms(action) if forward else machine.stream_ms(action)
                rows[name]["p50_ms"] = replayed or min(times)
        except Exception as error:  # the other engines go on
            rows[name]["failed"] = f"{type(error).__name__}: {error}"
    return rows


def _left_out(machine: Machine, precision: str, label: Row) -> bool:
    """tf32x3 is for the forward pass alone; the interpreter has no bfloat16."""
    if precision == "tf32x3":
        return label["way"] == "backward"
    return precision == "bf16" and machine.device.type == "cpu"


def _unsorted(kernel_map: KernelMap) -> KernelMap:
    """The map with its rows in the order of their keys for the triton backend."""
    table = kernel_map.table
    order = torch.arange(kernel_map.n_out, dtype=torch.int32, device=table.device)
    derived = {"triton.table": table, "triton.order": order}
    return KernelMap(
        table,
        kernel_map.n_in,
        kernel_map.kernel_size,
        kernel_map.stride,
        kernel_map.invert,
        derived,
    )


def _action(
    machine: Machine, name: str, kernel_map: KernelMap, channels: tuple[int, int], way: str
) -> Action:
    """One forward pass, or the gradients of features and weights."""
    backend, precision = name.split()[:2]
    cin, cout = channels
    dtype = _DTYPES.get(precision, torch.float32)
    draw = torch.Generator().manual_seed(0)
    shapes = ((kernel_map.n_in, cin), (kernel_map.kernel_size**3, cin, cout))
    feats, weight = (torch.randn(s, generator=draw).to(machine.device, dtype) for s in shapes)
    if way == "forward":
        if precision == "tf32x3":
            return partial(triton_backend.convolve, feats, weight, kernel_map, products="tf32x3")
        return partial(_forward, backend, feats, weight, kernel_map)
    leaves = [feats.requires_grad_(), weight.requires_grad_()]
    out = _MODULES[backend].conv(*leaves, None, kernel_map)
    cotangent = torch.randn(out.shape, generator=draw).to(machine.device, dtype)
    return lambda: torch.autograd.grad(out, leaves, cotangent, retain_graph=True)


_MODULES = {"torch": torch_backend, "triton": triton_backend, "torchsparse": torchsparse_backend}


@torch.no_grad()
def _forward(backend: str, feats: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
    return _MODULES[backend].conv(feats, weight, None, kernel_map)


def geometry(machine: Machine, points: np.ndarray) -> Iterator[Row]:
    """Voxels, their mean features, and all kernel maps of a network, on the GPU."""
    cloud = torch.from_numpy(points).to(machine.device)
    for voxel_m in VOXELS_M:
        made = grid(points, voxel_m, machine.device)
        voxels = voxelize(cloud[:, :3], voxel_m)
        actions: dict[str, Action] = {
            "voxelize": partial(voxelize, cloud[:, :3], voxel_m),
            "mean features": partial(mean_features, cloud, voxels),
            "kernel maps": build_maps(made, "auto"),
        }
        if machine.usable("triton"):
            actions["kernel maps, sorted for triton"] = partial(_sorted_maps, made)
        for name, times in in_turns(machine, actions, machine.rounds).items():
            row: Row = {"kind": "geometry", "engine": name, "voxel_m": voxel_m}
            yield row | {"voxels": len(voxels), "points": len(cloud)} | quantiles(times)


def _sorted_maps(made: Grid) -> None:
    cache = made.tensor("auto").cache
    for level in range(5):
        triton_backend.sorted_table(cache.kernel_map(1 << level, 3, 1))
        if level < 4:
            between = cache.kernel_map(1 << level, 2, 2)
            triton_backend.sorted_table(between)
            triton_backend.sorted_table(between.inverse)
