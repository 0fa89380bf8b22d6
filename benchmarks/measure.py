# SPDX-License-Identifier: Apache-2.0
"""Timing on busy machines: actions take turns, medians are compared within one run."""

from __future__ import annotations

import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Set the number of torch threads within a block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cpu_name() -> str:
    """Model of the CPU; its number tells virtual machines apart that hide the name."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    facts = dict(re.findall(r"^(model name|model)\s*: (.*)$", text, re.MULTILINE))
    return f"{facts.get('model name', platform.machine())} (model {facts.get('model', 'unknown')})"


def memory_mb(field: str = "VmHWM") -> float:
    """Memory of this process [MB] by a line of its status: its peak, or "VmRSS" for that of now.

    The peak of `getrusage` would include that of the process that started this one.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if field in line) / 1024


def timed(action: Callable[[], object]) -> float:
    """Wall time of one call in ms."""
    start = time.perf_counter()
    action()
    return 1e3 * (time.perf_counter() - start)


def interleaved(
    actions: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1
) -> dict[str, float]:
    """Median wall time in ms of each action; every round runs each of them once."""
    return wall_and_cpu(actions, rounds, warmup)[0]


def wall_and_cpu(
    actions: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1
) -> tuple[dict[str, float], dict[str, float]]:
    """Median wall time, and median CPU time of all threads, as `interleaved`."""
    wall: dict[str, list[float]] = {name: [] for name in actions}
    cpu: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(warmup + rounds):
        for name, action in actions.items():
            started = time.process_time()
            elapsed = timed(action)
            if turn >= warmup:
                wall[name].append(elapsed)
                cpu[name].append(1e3 * (time.process_time() - started))
    median = statistics.median
    return {n: median(v) for n, v in wall.items()}, {n: median(v) for n, v in cpu.items()}


class DensePeak:
    """Speed of dense matrix products on this machine, measured between the engines.

    fp32 is the faster of torch's matrix products at the default precision and at "medium"; "medium"
    counts only if its result is as exact as float32 (on some CPUs it uses bfloat16). CPUs without
    instructions for bfloat16 multiply it many times slower; for them bf16 is that of fp32.
    """

    SIZE = 2048
    PRECISIONS = ("fp32", "bf16")

    def __init__(self) -> None:
        self._a, self._b = torch.randn(self.SIZE, self.SIZE), torch.randn(self.SIZE, self.SIZE)
        self._low = self._a.bfloat16(), self._b.bfloat16()
        self._out = torch.empty(self.SIZE, self.SIZE)
        self._times: dict[str, list[float]] = {"fp32": [], "bf16": []}
        self._multiplies_bf16 = self._is_fast_in_bf16()
        self._medium_is_exact = self._error_of_medium() < 1e-5
        for _ in range(2):
            self.sample()
        self._times = {"fp32": [], "bf16": []}

    def _is_fast_in_bf16(self) -> bool:
        pairs = [part[:256, :256].contiguous() for part in (self._a, self._b, *self._low)]
        fp32, bf16 = (
            min(timed(partial(torch.mm, one, two)) for _ in range(3))
            for one, two in (pairs[:2], pairs[2:])
        )
        return bf16 < 2 * fp32

    def _error_of_medium(self) -> float:
        exact = self._a[:64].double() @ self._b.double()
        with matmul_precision("medium"):
            given = self._a[:64] @ self._b
            whole = (self._a @ self._b)[:64]
        return max(float((g - exact).norm() / exact.norm()) for g in (given, whole))

    def sample(self) -> None:
        """One product in each precision."""
        modes = ["highest", "medium"] if self._medium_is_exact else ["highest"]
        fastest = []
        for mode in modes:
            with matmul_precision(mode):
                fastest.append(timed(lambda: torch.mm(self._a, self._b, out=self._out)))
        self._times["fp32"].append(min(fastest))
        if self._multiplies_bf16:
            self._times["bf16"].append(timed(lambda: torch.mm(*self._low)))

    def gflops(self, precision: str) -> float:
        """Median speed in 1e9 floating point operations per second."""
        times = self._times[precision] or self._times["fp32"]
        return 2 * self.SIZE**3 / statistics.median(times) / 1e6


@contextmanager
def matmul_precision(mode: str) -> Iterator[None]:
    """Set the precision of float32 matrix products of torch within a block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(mode)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
