# SPDX-License-Identifier: Apache-2.0
"""Equality and speed of all backends on a GPU, in at most six minutes.

    python -m benchmarks.cuda --out DIR

Needs PyTorch with Triton and the imports of `pcseg_core`. An error ends its engine or part only
and is reported. DIR receives `cuda.json`, `cuda.md` and `profile.txt` after each part. Engines take
turns; times are medians from an idle GPU to an idle GPU. Layers are timed in a CUDA graph.
`--quick` tests the script, also on a CPU with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu import equality, inputs, layers, networks, pipelines, report
from benchmarks.gpu.machine import Machine, Row, ceilings, describe
from pcseg_core.files import write_atomic

Part = tuple[str, Callable[[], Iterable[Row]]]
_RESERVE_S = 5.0  # a part begins only if this much of the budget is left


class Results:
    """Rows and errors so far, on disk after each part."""

    def __init__(self, machine: Machine, out: Path) -> None:
        self._machine, self._out = machine, out
        self.rows: list[Row] = []
        self.parts: list[Row] = []
        self.about = describe(machine)

    def run(self, name: str, part: Callable[[], Iterable[Row]]) -> None:
        """Add the rows of a part; an error ends the part, not the benchmark."""
        begun, entry = time.monotonic(), {"part": name}
        if self._machine.left_s() < _RESERVE_S:
            entry["failed"] = "left out: no time left"
        else:
            try:
                for row in part():
                    self.rows.append(row)
                    if self._machine.left_s() < 0:
                        entry["failed"] = "cut short: no time left"
                        break
            except Exception as error:  # also of a GPU that went away
                entry["failed"] = f"{type(error).__name__}: {error}"
                entry["trace"] = traceback.format_exc()
                traceback.print_exc()
        entry["seconds"] = round(time.monotonic() - begun, 1)
        self.parts.append(entry)
        print(
            f"{name}: {entry['seconds']} s {entry.get('failed', '')}", file=sys.stderr, flush=True
        )
        self.write()

    def write(self) -> None:
        content = {"machine": self.about, "parts": self.parts, "rows": self.rows}
        write_atomic(self._out / "cuda.json", json.dumps(content, indent=1, default=str))
        write_atomic(self._out / "cuda.md", report.markdown(self.about, self.parts, self.rows))


def parts(machine: Machine, points: np.ndarray, out: Path) -> list[Part]:
    """The parts, the most important first."""
    made = inputs.grid(points, inputs.VOXELS_M[0], machine.device)
    cloud = torch.from_numpy(points)

    def profile() -> Iterable[Row]:
        write_atomic(out / "profile.txt", pipelines.profile(machine, points))
        return ()

    return [
        ("ceilings", lambda: ceilings(machine)),
        ("equality of maps", lambda: equality.kernel_maps(machine, cloud, inputs.VOXELS_M[0])),
        ("equality of fused layers", lambda: equality.fused_layers(machine, made)),
        ("pipeline", lambda: pipelines.sweeps(machine, points)),
        ("equality of convolutions", lambda: equality.convolutions(machine, made)),
        ("networks", lambda: networks.inference(machine, points)),
        ("profile", profile),
        ("training", lambda: networks.training(machine, points)),
        ("layers", lambda: layers.convolutions(machine, points)),
        ("geometry", lambda: layers.geometry(machine, points)),
    ]


def main() -> int:
    """Run all parts; 1 if a result is wrong or a part failed."""
    parser = argparse.ArgumentParser(description="Benchmark of the backends on a GPU.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--sweep", type=Path, help="a sweep instead of a simulated one")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or, with --quick, cpu")
    parser.add_argument("--budget", type=float, default=330.0, help="seconds for all parts")
    parser.add_argument("--rounds", type=int, default=20, help="turns of each engine")
    parser.add_argument("--only", help="parts whose name contains this")
    parser.add_argument("--quick", action="store_true", help="small inputs: test the script")
    arguments = parser.parse_args()
    begun = time.monotonic()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(
            "error: torch sees no CUDA device; --quick --device cpu tests the script",
            file=sys.stderr,
        )
        return 1
    points = 100 if arguments.quick else 125_000
    rounds = 1 if arguments.quick else arguments.rounds
    machine = Machine(device, arguments.quick, points, rounds, begun, arguments.budget)
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = Results(machine, arguments.out)
    print(json.dumps(results.about, indent=1), file=sys.stderr, flush=True)
    cloud = inputs.sweep(machine, arguments.sweep)[: machine.points]
    for name, part in parts(machine, cloud, arguments.out):
        if not arguments.only or arguments.only in name:
            results.run(name, part)
    print(report.markdown(results.about, results.parts, results.rows))
    wrong = [row for row in results.rows if row.get("ok") is False]
    return int(bool(wrong) or any("failed" in part for part in results.parts))


if __name__ == "__main__":
    sys.exit(main())
