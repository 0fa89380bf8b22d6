# SPDX-License-Identifier: Apache-2.0
"""The GPU under test: its description, its rates and timers."""

from __future__ import annotations

import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch

from benchmarks.measure import cpu_name, matmul_precision
from pcseg_core.native import library
from pcseg_core.sparse.backends import backends_report, triton_backend

Row = dict[str, Any]
Action = Callable[[], object]


@dataclass(frozen=True)
class Machine:
    """Where the benchmark runs.

    Attributes:
        device: a GPU; the CPU where the benchmark itself is tested.
        quick: small inputs and few rounds.
        points: of the sweep.
        rounds: turns of each engine.
        begun_s: start of the run on the clock of `time.monotonic`.
        budget_s: time for the whole run.
    """

    device: torch.device
    quick: bool
    points: int
    rounds: int
    begun_s: float
    budget_s: float

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def usable(self, backend: str) -> bool:
        """True where a backend runs on the device; on the CPU, Triton only interpreted."""
        if backend == "triton" and triton_backend.interpreted():
            return True
        on_gpu = {row.name: row.available for row in backends_report()}[backend]
        return on_gpu and (self.device.type == "cuda" or backend not in ("triton", "torchsparse"))

    def wall_ms(self, action: Action) -> float:
        """Time of one call, from an idle GPU to an idle GPU."""
        self.synchronize()
        start = time.perf_counter()
        action()
        self.synchronize()
        return 1e3 * (time.perf_counter() - start)

    def left_s(self) -> float:
        """Time that is left of the budget."""
        return self.budget_s - (time.monotonic() - self.begun_s)

    def peak_mib(self, action: Action) -> float | None:
        """Most memory that a call takes on top of what is there [MiB]; None on the CPU."""
        if self.device.type != "cuda":
            return None
        self.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        action()
        self.synchronize()
        return (torch.cuda.max_memory_allocated(self.device) - before) / 2**20

    def stream_ms(self, action: Action, repeats: int = 10) -> float | None:
        """Time per call of calls in a row, none waiting for another; None on the CPU."""
        if self.device.type != "cuda":
            return None
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(repeats):
            action()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / repeats

    def device_ms(self, action: Action, repeats: int = 10) -> float | None:
        """Time on the GPU alone, by replaying a CUDA graph; None where it cannot be captured."""
        if self.device.type != "cuda":
            return None
        action()
        self.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                for _ in range(repeats):
                    action()
        except RuntimeError:
            self.synchronize()
            return None
        graph.replay()
        times = []
        for _ in range(5):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / repeats)
        return statistics.median(times)


def in_turns(
    machine: Machine, actions: Mapping[str, Action], rounds: int
) -> dict[str, list[float]]:
    """Wall times [ms] of actions that take turns, sorted, after two rounds of warm-up."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    warmup = 0 if machine.quick else 2
    for turn in range(warmup + rounds):
        for name, action in actions.items():
            elapsed = machine.wall_ms(action)
            if turn >= warmup:
                times[name].append(elapsed)
    return {name: sorted(values) for name, values in times.items()}


def quantiles(times: list[float]) -> dict[str, float]:
    """Median and 95th percentile of sorted times."""
    last = len(times) - 1
    return {"p50_ms": statistics.median(times), "p95_ms": times[min(last, round(0.95 * last))]}


def importable(module: str) -> bool:
    """True where a peer is installed and loads."""
    try:
        import_module(module)
    except Exception:  # peers fail in their own ways
        return False
    return True


def describe(machine: Machine) -> Row:
    """Hardware and versions."""
    row: Row = {"cpu": cpu_name(), "python": platform.python_version(), "torch": torch.__version__}
    row["cuda"], row["triton"] = torch.version.cuda, _version("triton")
    if machine.device.type == "cuda":
        properties = torch.cuda.get_device_properties(machine.device)
        row |= {"gpu": properties.name, "memory_gib": properties.total_memory / 2**30}
        row |= {"multiprocessors": properties.multi_processor_count, "driver": _driver()}
        row["capability"] = ".".join(map(str, torch.cuda.get_device_capability(machine.device)))
    loaded = library.load()
    row["native"] = loaded if isinstance(loaded, str) else library.isa_names()[library.best_isa()]
    row["backends"] = {report.name: report.note for report in backends_report()}
    row["peers"] = {name: _version(name) for name in ("spconv", "torchsparse") if importable(name)}
    row["interpreted"] = triton_backend.interpreted()
    return row


def ceilings(machine: Machine) -> Iterator[Row]:
    """Highest rates of this GPU: copies [GB/s] and dense products [TFLOP/s], on random values."""
    size = 256 if machine.quick else 8192
    source = torch.randn(size, size, 4, device=machine.device)
    target = torch.empty_like(source)
    time_ms = _fastest(machine, lambda: target.copy_(source))
    yield {"kind": "ceiling", "what": "copy GB/s", "rate": 2e-6 * source.nbytes / time_ms}
    for name, dtype in (("fp32", torch.float32), ("tf32", torch.float32), ("fp16", torch.float16)):
        a, b = (torch.randn(size, size, device=machine.device, dtype=dtype) for _ in range(2))
        with matmul_precision("high" if name == "tf32" else "highest"):
            time_ms = _fastest(machine, partial(torch.mm, a, b))
        yield {"kind": "ceiling", "what": f"{name} TFLOP/s", "rate": 2e-9 * size**3 / time_ms}


def _fastest(machine: Machine, action: Action) -> float:
    action()
    times = [machine.stream_ms(action) or machine.wall_ms(action) for _ in range(3)]
    return min(times)


def _version(module: str) -> str | None:
    try:
        return str(getattr(import_module(module), "__version__", "unknown"))
    except ImportError:
        return None


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "unknown: no nvidia-smi"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else "unknown"
