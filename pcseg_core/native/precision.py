# SPDX-License-Identifier: Apache-2.0
"""The arithmetic that is fastest on this CPU, measured on a small layer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Literal

import torch

from pcseg_core.native import tensors
from pcseg_core.native.library import best_isa, isa_names

GAIN = 1.1
"""How many times faster a less exact precision must be to be chosen."""

# The layer is one task of the library: it runs on the thread whose time is taken. Its width is one
# that tiles of 64 channels do not fill, as in most layers of a network of half width.
_ROWS, _CHANNELS, _OFFSETS, _DENSITY = 256, 48, 27, 0.25
_RUNS = 5
# The most exact first.
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.uint8}

Precision = Literal["fp32", "bf16", "int8"]

log = logging.getLogger(__name__)


def choose(integers: bool = False) -> Precision:
    """The precision that "auto" takes on the CPU.

    A less exact one is taken if it is at least GAIN times faster on the instruction set in use (the
    fastest of this CPU, or that of PCSEG_ISA).

    Args:
        integers: "int8" is exact enough too.
    """
    times = layer_ms(best_isa())
    chosen: Precision = "fp32"
    others: tuple[Precision, ...] = ("bf16", "int8") if integers else ("bf16",)
    for name in others:
        if times[chosen] >= GAIN * times[name]:
            chosen = name
    return chosen


def summary() -> str:
    """The choice and its reason."""
    times = layer_ms(best_isa())
    speeds = [f"{name} {times['fp32'] / times[name]:.1f}" for name in ("bf16", "int8")]
    return (
        f"auto precision {choose()}, {choose(integers=True)} after `pcseg quantize`; times as fast "
        f"as fp32: {', '.join(speeds)}"
    )


@cache
def layer_ms(isa: int) -> dict[str, float]:
    """CPU time of a small layer [ms] by precision, the most exact first.

    Measured once per process, in about 10 ms: the minimum of five runs that take turns. CPU time
    and the minimum hold on a busy machine.

    Args:
        isa: index of the instruction set.
    """
    layers = {name: _layer(dtype, isa) for name, dtype in _DTYPES.items()}
    times = dict.fromkeys(layers, float("inf"))
    for _ in range(_RUNS):
        for name, run in layers.items():
            start = time.thread_time()
            run()
            times[name] = min(times[name], 1e3 * (time.thread_time() - start))
    text = ", ".join(f"{name} {ms:.3f}" for name, ms in times.items())
    log.info("CPU time of a test layer on %s, ms: %s", isa_names()[isa], text)
    return times


def _layer(dtype: torch.dtype, isa: int) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    table = torch.arange(_ROWS, dtype=torch.int32).repeat(_OFFSETS, 1)
    absent = torch.rand(table.shape, generator=generator) > _DENSITY
    absent[_OFFSETS // 2] = False
    table[absent] = -1
    x = torch.ones(_ROWS, _CHANNELS, dtype=dtype)
    packed = tensors.pack(torch.ones(_OFFSETS, _CHANNELS, _CHANNELS), dtype, isa=isa)
    pairs = tensors.list_pairs(table, _ROWS, dtype, isa)
    out = torch.empty_like(x)
    scales = tensors.Integers(torch.ones(_CHANNELS))
    conv = partial(tensors.conv, isa=isa, pairs=pairs, integers=scales)
    return partial(conv, x, table, packed, out, _CHANNELS)
