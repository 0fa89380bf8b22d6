# SPDX-License-Identifier: Apache-2.0
"""Compare sparse convolution engines on one sweep.

    python -m benchmarks.engine --sweep FILE --voxel 0.05 --json OUT

Engines take turns within each round, so their ratios hold if the speed of the machine drifts. Times
of networks include kernel maps, not voxelization.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import engine_cases as cases
from benchmarks.engine_report import picture, tables
from benchmarks.engine_rss import make_engine, peak_rss_mb
from benchmarks.measure import DensePeak, cpu_name, interleaved, threads, timed
from benchmarks.sweeps import load_sweep
from pcseg_core.errors import InputError, PcsegError
from pcseg_core.files import write_atomic
from pcseg_core.models.minkunet import PLANES, scaled
from pcseg_core.native import library
from pcseg_core.sparse import SparseConv3d, SparseTensor

Row = dict[str, Any]
WRONG = 1e-3  # relative error of a result in float32
SCALING_VOXELS = (10_000, 30_000, 100_000, 300_000, 1_000_000)


def network_rows(
    grid: cases.Grid, depth: int, width: float, engines: list[str], rounds: int
) -> list[Row]:
    """Forward passes of one network on every engine."""
    net = cases.network(depth, width, grid)
    work = cases.gflop(net, grid)
    runs: dict[str, cases.Forward] = {}
    for name in engines:
        if name.startswith("spconv"):
            runs[name] = cases.spconv_engine(net, int(name.split()[2][1:]))
        else:
            runs[name] = make_engine(name, net, grid)
    reference = runs["torch fp32"](grid)
    outputs = {name: run(grid) for name, run in runs.items()}
    peak = DensePeak()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        peak.sample()
        for name, run in runs.items():
            times[name].append(timed(partial(run, grid)))
    medians = {name: statistics.median(values) for name, values in times.items()}
    differences = {name: _difference(outputs[name], reference, name.split()[1]) for name in runs}
    right = {name: ms for name, ms in medians.items() if not differences[name]["wrong"]}
    rows = []
    for name, median in medians.items():
        precision = name.split()[1]
        speed = work / median * 1e3
        row = _row("network", f"MinkUNet{depth}", width, name, median, right)
        row |= {"voxels": len(grid.coords), "gflop": work, "gflops": speed}
        if precision in DensePeak.PRECISIONS:
            row |= {"fraction_of_peak": speed / peak.gflops(precision)}
            row["peak_gflops"] = peak.gflops(precision)
        rows.append(row | {"times_ms": times[name]} | differences[name])
    return rows


def _difference(given: Tensor, reference: Tensor, precision: str) -> Row:
    """How far a result is from the reference; a float32 result beyond `WRONG` is wrong."""
    error = float((given - reference).norm() / reference.norm())
    flipped = (given.argmax(1) != reference.argmax(1)).float().mean()
    wrong = precision == "fp32" and not error <= WRONG
    return {"relative_error": error, "argmax_changed": float(flipped), "wrong": wrong}


def _row(kind: str, what: str, width: float, name: str, ms: float, all_ms: dict[str, float]) -> Row:
    """Names, time, and speed relative to spconv's fastest right run and the torch backend."""
    engine, precision, *count = name.split()
    row: Row = {"kind": kind, "network": what, "width": width, "engine": engine}
    row |= {"precision": precision, "median_ms": ms}
    row["threads"] = int(count[0][1:]) if count else torch.get_num_threads()
    spconv = [time for other, time in all_ms.items() if other.startswith("spconv")]
    row["ratio"] = min(spconv) / ms if spconv else None
    row["ratio_to_torch"] = all_ms["torch fp32"] / ms if "torch fp32" in all_ms else None
    return row


def training_rows(grid: cases.Grid, depth: int, width: float, rounds: int) -> list[Row]:
    """Forward and backward on the native and the torch backend."""
    net = cases.network(depth, width, grid).train()
    actions = {f"{b} fp32": cases.training_step(net, grid, b) for b in ("native", "torch")}
    medians = interleaved(actions, rounds)
    return [
        _row("training step", f"MinkUNet{depth}", width, name, ms, medians)
        | {"voxels": len(grid.coords)}
        for name, ms in medians.items()
    ]


def map_rows(grid: cases.Grid, rounds: int) -> list[Row]:
    """Kernel maps of all levels."""
    actions = {f"{b} fp32": cases.build_maps(grid, b) for b in ("native", "torch")}
    medians = interleaved(actions, 3 * rounds, warmup=2)
    return [
        _row("maps", "kernel maps of 5 levels", 0, name, ms, medians) | {"voxels": len(grid.coords)}
        for name, ms in medians.items()
    ]


def layer_rows(grid: cases.Grid, width: float, with_spconv: bool, rounds: int) -> list[Row]:
    """A 3x3x3 convolution per level, with the width of the decoder."""
    cache, rows = grid.tensor().cache, []
    widths = [scaled(planes, width) for planes in (*reversed(PLANES[4:]), PLANES[3])]
    for level, channels in enumerate(widths):
        stride = 1 << level
        x = SparseTensor.of(torch.randn(len(cache.keys(stride)), channels), stride, cache)
        conv = SparseConv3d(channels, channels)
        engines = cases.layer_engines(x, conv, with_spconv)
        medians = interleaved(engines, rounds, warmup=1)
        pairs = int((cache.kernel_map(stride, 3, 1).table >= 0).sum())
        work = 2e-9 * pairs * channels**2
        for name, ms in medians.items():
            what = f"level {level}, {channels} channels"
            row = _row("layer", what, width, name, ms, medians)
            rows.append(row | {"voxels": len(x), "gflop": work, "gflops": work / ms * 1e3})
    return rows


def scaling_rows(points: Tensor, voxel: float, width: float, rounds: int) -> list[Row]:
    """MinkUNet18 on sectors of the sweep and on batches of it, from 10 thousand voxels to 1e6."""
    whole = cases.grid_of(points, voxel)
    net = cases.network(18, width, whole)
    runs = {name: make_engine(name, net, whole) for name in ("native fp32", "native bf16")}
    rows = []
    for target in SCALING_VOXELS:
        grid = _of_size(points, voxel, target, len(whole.coords))
        actions = {name: partial(run, grid) for name, run in runs.items()}
        medians = interleaved(actions, rounds)
        for name, ms in medians.items():
            row = _row("scaling", "MinkUNet18", width, name, ms, medians)
            rows.append(row | {"voxels": len(grid.coords), "batch": int(grid.coords[-1, 0]) + 1})
    return rows


def _of_size(points: Tensor, voxel: float, target: int, whole: int) -> cases.Grid:
    """About `target` voxels: a sector of the sweep, or a batch of rotated copies."""
    if target >= whole:
        return cases.repeated(points, voxel, round(target / whole))
    azimuth = torch.atan2(points[:, 1], points[:, 0])
    order = azimuth.argsort()
    return cases.grid_of(points[order[: len(points) * target // whole]], voxel)


def run(arguments: argparse.Namespace) -> list[Row]:
    """All requested rows."""
    points = torch.from_numpy(load_sweep(arguments.sweep))
    grid = cases.grid_of(points, arguments.voxel)
    print(f"{cpu_name()}; instruction set {_instruction_set()}, {arguments.threads} threads")
    print(f"{len(points)} points, {len(grid.coords)} voxels at {arguments.voxel} m", flush=True)
    if arguments.scaling:
        return _with_scaling_rss(scaling_rows(points, arguments.voxel, 0.5, 3), arguments)
    engines = ["native fp32", "native bf16", "native int8", "torch fp32"]
    with_spconv = not arguments.no_spconv and find_spec("spconv") is not None
    if with_spconv:
        engines += [f"spconv fp32 x{count}" for count in sorted({1, arguments.threads})]
    rows: list[Row] = []
    for text in arguments.networks.split(","):
        depth, width = int(text.split(":")[0]), float(text.split(":")[1])
        rows += network_rows(grid, depth, width, engines, arguments.rounds)
        if not arguments.no_rss:
            _add_rss(rows, arguments, depth, width)
        print(tables(rows[-len(engines) :]), flush=True)
    coarse = cases.grid_of(points, 2 * arguments.voxel)
    rows += training_rows(coarse, 18, 0.5, arguments.rounds)
    rows += map_rows(grid, arguments.rounds)
    rows += layer_rows(grid, 1.0, with_spconv, arguments.rounds)
    return rows


def _instruction_set() -> str:
    """The one in use, and what the float32 kernels are on it: tiles multiply no float32."""
    name = library.isa_names()[library.best_isa()]
    return f"{name} (fp32 on avx512)" if name == "amx" else name


def _add_rss(rows: list[Row], arguments: argparse.Namespace, depth: int, width: float) -> None:
    for row in rows:
        if (row["network"], row["width"]) == (f"MinkUNet{depth}", width) and "rss_mb" not in row:
            name = f"{row['engine']} {row['precision']}"
            row["rss_mb"] = peak_rss_mb(arguments.sweep, arguments.voxel, name, depth, width, 1)


def _with_scaling_rss(rows: list[Row], arguments: argparse.Namespace) -> list[Row]:
    for row in rows:
        if row["batch"] > 1:
            name = f"{row['engine']} {row['precision']}"
            row["rss_mb"] = peak_rss_mb(
                arguments.sweep, arguments.voxel, name, 18, row["width"], row["batch"]
            )
    return rows


def parse(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument("--sweep", required=True, help="KITTI or nuScenes .bin, PCD or npz")
    parser.add_argument("--voxel", type=float, default=0.05, help="edge of a voxel [m]")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--picture", type=Path, help="write a bar chart to this file (PNG or SVG)")
    parser.add_argument("--networks", default="18:0.5,34:1.0", help="depth:width, comma-separated")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds; times are medians")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--scaling", action="store_true", help="10 thousand to a million voxels")
    parser.add_argument("--no-spconv", action="store_true", help="skip spconv")
    parser.add_argument("--no-rss", action="store_true", help="skip peak memory")
    return parser.parse_args(given)


def main() -> int:
    """Run, print tables, write JSON and picture."""
    arguments = parse()
    try:
        library.library()
        if arguments.rounds < 1 or arguments.threads < 1 or arguments.voxel <= 0:
            raise InputError("--rounds, --threads and --voxel must be positive")
        with threads(arguments.threads):
            rows = run(arguments)
        print(tables(rows))
        if arguments.json:
            about = {"sweep": Path(arguments.sweep).name, "voxel_m": arguments.voxel}
            about |= {"threads": arguments.threads, "torch": torch.__version__}
            about |= {"cpu": cpu_name(), "instruction_set": library.isa_names()[library.best_isa()]}
            write_atomic(arguments.json, json.dumps({"about": about, "rows": rows}, indent=1))
        if arguments.picture:
            picture(rows, arguments.picture)
    except PcsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
