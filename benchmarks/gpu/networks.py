# SPDX-License-Identifier: Apache-2.0
"""Whole networks and training steps side by side on a GPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.engine_cases import Grid, gflop, network, repeated
from benchmarks.gpu.equality import error_of
from benchmarks.gpu.inputs import VOXELS_M, grid, networks, on
from benchmarks.gpu.machine import Action, Machine, Row, importable, in_turns, quantiles
from benchmarks.measure import matmul_precision
from pcseg_core.models.inference import Precision, compile_inference
from pcseg_core.models.minkunet import MinkUNet

_HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
_COPIES = 4  # sweeps per training step


@dataclass(frozen=True)
class Engine:
    """A network that is ready to run.

    Attributes:
        run: logits (M, classes), kernel maps included.
        known: the same with known kernel maps, without synchronization, or None.
    """

    run: Callable[[], Tensor]
    known: Action | None = None


def precision_of(name: str) -> AbstractContextManager[object]:
    """torch's float32 products within a block: TF32 or exact."""
    return matmul_precision("high" if name == "tf32" else "highest")


def autocast(name: str, device: torch.device) -> AbstractContextManager[object]:
    """Mixed precision within a block, where the name asks for it."""
    return torch.autocast(device.type, _HALF[name]) if name in _HALF else nullcontext()


def inference(machine: Machine, points: np.ndarray) -> Iterator[Row]:
    """Times, memory and error per network, voxel size and engine."""
    for depth, width in networks(machine):
        for voxel_m in VOXELS_M:
            on_cpu = grid(points, voxel_m, torch.device("cpu"))
            net = network(depth, width, on_cpu)
            with torch.no_grad():
                expected = net(on_cpu.tensor()).feats
            label = {"kind": "network", "network": f"MinkUNet{depth}", "width": width}
            label |= {"voxel_m": voxel_m, "voxels": len(on_cpu.coords), "gflop": gflop(net, on_cpu)}
            made = _engines(machine, net, on(on_cpu, machine.device))
            yield from _compare(machine, label, made, expected)


def _engines(machine: Machine, net: MinkUNet, made: Grid) -> dict[str, Engine]:
    """By name: backend, precision and "modules" where nothing is fused."""
    net = copy.deepcopy(net).to(machine.device)
    plain = [("torch fp32", "torch", "fp32"), ("torch fp16", "torch", "fp16")]
    plain += [("triton fp32 modules", "triton", "fp32")]
    plain += [("torchsparse fp32", "torchsparse", "fp32")]
    plain += [("torchsparse fp16", "torchsparse", "fp16")]
    engines = {
        name: Engine(partial(_module, net, made, backend, precision))
        for name, backend, precision in plain
        if machine.usable(backend)
    }
    if machine.usable("triton"):
        for precision in ("fp32", "tf32", "fp16", "bf16")[: 3 if machine.quick else 4]:
            engines[f"triton {precision}"] = _compiled(net, made, precision)
    if importable("spconv.pytorch"):
        for precision in ("fp32", "fp16"):
            engines[f"spconv {precision}"] = _spconv(net, made, precision)
    return engines


@torch.no_grad()
def _module(net: MinkUNet, made: Grid, backend: str, precision: str) -> Tensor:
    with precision_of(precision), autocast(precision, made.feats.device):
        return net(made.tensor(backend)).feats


def _compiled(net: MinkUNet, made: Grid, precision: str) -> Engine:
    kind = cast(Precision, "fp32" if precision == "tf32" else precision)
    compiled = compile_inference(net, kind, "triton")
    known = made.tensor("triton")

    def run(again: bool) -> Tensor:
        with torch.no_grad(), precision_of(precision):
            return compiled(known if again else made.tensor("triton")).feats

    return Engine(partial(run, False), partial(run, True))


def _spconv(net: MinkUNet, made: Grid, precision: str) -> Engine:
    from benchmarks.spconv_peer import SpconvUNet

    dtype = _HALF.get(precision, torch.float32)
    peer = SpconvUNet(net).to(made.feats.device, dtype)
    return Engine(lambda: peer(made.coords, made.feats.to(dtype)))


def _compare(
    machine: Machine, label: Row, engines: dict[str, Engine], expected: Tensor
) -> Iterator[Row]:
    rows: dict[str, Row] = {}
    for name, engine in list(engines.items()):
        rows[name] = {**label, "engine": name, "precision": name.split()[1]}
        try:
            rows[name] |= _first_look(machine, engine, expected)
        except Exception as error:  # the other engines go on
            rows[name]["failed"] = f"{type(error).__name__}: {error}"
            del engines[name]
    times = in_turns(machine, {name: e.run for name, e in engines.items()}, machine.rounds)
    for name, values in times.items():
        rows[name] |= quantiles(values)
    add_ratios(rows)
    yield from rows.values()


def _first_look(machine: Machine, engine: Engine, expected: Tensor) -> Row:
    """Error and memory of an engine, and what its first run takes."""
    row: Row = {"first_s": machine.wall_ms(engine.run) / 1e3}
    given = engine.run()
    changed = given.cpu().argmax(1) != expected.argmax(1)
    row |= {"relative_error": error_of(given, expected)}
    row |= {"argmax_changed": float(changed.float().mean())}
    row["peak_mib"] = machine.peak_mib(engine.run)
    row["device_ms"] = None if engine.known is None else machine.device_ms(engine.known, 3)
    return row


def add_ratios(rows: dict[str, Row]) -> None:
    """How many times faster than the torch backend in the same precision, and in float32."""
    for row in rows.values():
        for key, peer in (
            ("vs_torch_fp32", "torch fp32"),
            ("vs_torch", f"torch {row['precision']}"),
        ):
            if "p50_ms" in row and "p50_ms" in rows.get(peer, {}):
                row[key] = rows[peer]["p50_ms"] / row["p50_ms"]


def training(machine: Machine, points: np.ndarray) -> Iterator[Row]:
    """Forward and backward of a cross-entropy, kernel maps included, on a batch of sweeps."""
    for depth, width in networks(machine):
        copies = 1 if machine.quick else _COPIES
        batch = repeated(torch.from_numpy(points), VOXELS_M[-1], copies)
        single = grid(points, VOXELS_M[-1], torch.device("cpu"))
        net = network(depth, width, single).to(machine.device).train()
        label = {"kind": "training step", "network": f"MinkUNet{depth}", "width": width}
        label |= {"voxel_m": VOXELS_M[-1], "voxels": len(batch.coords), "sweeps": copies}
        yield from _steps(machine, label, net, on(batch, machine.device))


def _steps(machine: Machine, label: Row, net: MinkUNet, batch: Grid) -> Iterator[Row]:
    names = [f"torch {p}" for p in ("fp32", "tf32", "fp16")]
    for backend in ("triton", "torchsparse"):
        names += [f"{backend} {p}" for p in ("fp32", "tf32", "fp16")] * machine.usable(backend)
    names += ["triton bf16"] * (machine.usable("triton") and not machine.quick)
    rows: dict[str, Row] = {}
    steps: dict[str, Action] = {}
    for name in names:
        backend, precision = name.split()
        rows[name] = {**label, "engine": name, "precision": precision}
        step = partial(_step, net, batch, backend, precision)
        try:
            rows[name]["first_s"] = machine.wall_ms(step) / 1e3
            rows[name]["gradient"] = _gradient(net)
            rows[name]["peak_mib"] = machine.peak_mib(step)
            steps[name] = step
        except Exception as error:  # the other engines go on
            rows[name]["failed"] = f"{type(error).__name__}: {error}"
    for name, values in in_turns(machine, steps, -(-machine.rounds // 3)).items():
        rows[name] |= quantiles(values)
    add_ratios(rows)
    reference = rows["torch fp32"].get("gradient")
    for row in rows.values():
        given = row.pop("gradient", None)
        if given is not None and reference is not None:
            row["relative_error"] = error_of(given, reference)
    yield from rows.values()


def _step(net: MinkUNet, batch: Grid, backend: str, precision: str) -> None:
    net.zero_grad()
    labels = torch.arange(len(batch.coords), device=batch.feats.device) % net.out_channels
    with precision_of(precision):
        with autocast(precision, batch.feats.device):
            logits = net(batch.tensor(backend)).feats
        # Scaled, so that float16 gradients do not vanish; the scale is the same for all.
        (1024.0 * nn.functional.cross_entropy(logits.float(), labels)).backward()


def _gradient(net: MinkUNet) -> Tensor:
    """All gradients in one vector on the CPU."""
    return torch.cat([p.grad.flatten().cpu() for p in net.parameters() if p.grad is not None])
