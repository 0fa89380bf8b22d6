# SPDX-License-Identifier: Apache-2.0
"""Compare runtimes of an exported network with the engines of pcseg on one sweep.

    python -m benchmarks.export --sweep FILE --voxel 0.1 --json OUT

Engines take turns within each round, so their ratios hold if the speed of the machine drifts. Times
include kernel maps, not voxelization. ONNX Runtime and OpenVINO run where they are installed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import engine_cases as cases
from benchmarks.measure import cpu_name, threads, wall_and_cpu
from benchmarks.sweeps import load_sweep
from pcseg_core.errors import InputError, PcsegError
from pcseg_core.export.calibration import recording
from pcseg_core.export.graph import Graph, Precision
from pcseg_core.export.network import add_classifier, add_network
from pcseg_core.export.runtime import OnnxStudent
from pcseg_core.export.tables import graph_inputs, minkunet_inputs
from pcseg_core.files import write_atomic
from pcseg_core.models.minkunet import MinkUNet
from pcseg_core.native import library

Row = dict[str, Any]
Run = Callable[[], np.ndarray]


def exported(net: MinkUNet, grid: cases.Grid, precision: Precision) -> bytes:
    """The file of a network; int8 is calibrated on the sweep itself."""
    with recording(net) as recorded, torch.no_grad():
        if precision == "int8":
            net(grid.tensor("torch"))
    graph = Graph(precision, recorded.peaks)
    add_classifier(graph, add_network(graph, net), net.classifier)
    content: bytes = graph.model(
        minkunet_inputs(net.in_channels), net.out_channels
    ).SerializeToString()
    return content


def own_engines(net: MinkUNet, grid: cases.Grid, count: int) -> dict[str, Run]:
    """The native library and the torch backend, with a number of threads."""
    forwards = {f"native {p}": cases.native_engine(net, p, grid) for p in ("fp32", "bf16")}
    forwards["torch fp32"] = cases.torch_engine(net)

    def run(forward: cases.Forward) -> np.ndarray:
        with threads(count):
            return forward(grid).numpy()

    return {name: partial(run, forward) for name, forward in forwards.items()}


def onnx_runtime(content: bytes, grid: cases.Grid, count: int) -> Run:
    """The file in ONNX Runtime."""
    student = OnnxStudent(content, count)

    def run() -> np.ndarray:
        with threads(count):
            return student(grid.tensor())

    return run


def openvino(content: bytes, grid: cases.Grid, count: int, hint: str) -> Run:
    """The file in OpenVINO, with a hint on its arithmetic: "f32" or "bf16"."""
    from openvino import Core

    core = Core()
    settings = {"INFERENCE_NUM_THREADS": count, "INFERENCE_PRECISION_HINT": hint}
    model = core.compile_model(core.read_model(content), "CPU", settings)

    def run() -> np.ndarray:
        with threads(count):
            result: np.ndarray = model(graph_inputs(grid.tensor()))["logits"]
        return result.copy()

    return run


def engines(net: MinkUNet, grid: cases.Grid, count: int) -> dict[str, Run]:
    """All engines by name and precision."""
    runs = own_engines(net, grid, count)
    files = {precision: exported(net, grid, precision) for precision in ("fp32", "int8")}
    for precision, content in files.items():
        runs[f"onnxruntime {precision}"] = onnx_runtime(content, grid, count)
    if find_spec("openvino") is not None:
        runs["openvino fp32"] = openvino(files["fp32"], grid, count, "f32")
        runs["openvino bf16"] = openvino(files["fp32"], grid, count, "bf16")
        runs["openvino int8"] = openvino(files["int8"], grid, count, "f32")
    return runs


def rows_of(net: MinkUNet, grid: cases.Grid, count: int, rounds: int) -> list[Row]:
    """Median time of each engine with a number of threads, and its difference from torch."""
    runs = engines(net, grid, count)
    exact = runs["torch fp32"]()
    outputs = {name: run() for name, run in runs.items()}
    wall, cpu = wall_and_cpu(runs, rounds, warmup=0)
    rows = []
    for name in runs:
        engine, precision = name.split()
        row: Row = {"engine": engine, "precision": precision, "threads": count}
        row |= {"median_ms": wall[name], "cpu_ms": cpu[name]}
        row["times_native"] = wall[name] / wall["native fp32"]
        row["error"] = float(np.abs(outputs[name] - exact).max() / np.ptp(exact))
        row["labels_changed"] = float((outputs[name].argmax(1) != exact.argmax(1)).mean())
        rows.append(row)
    return rows


def table(rows: list[Row]) -> str:
    """Rows as a Markdown table."""
    heads = ["engine", "threads", "ms", "CPU ms", "times native fp32", "error", "labels changed"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        name = f"{row['engine']} {row['precision']}"
        lines.append(
            f"| {name} | {row['threads']} | {row['median_ms']:.0f} | {row['cpu_ms']:.0f} | "
            f"{row['times_native']:.1f}x | {row['error']:.1e} | {row['labels_changed']:.2%} |"
        )
    return "\n".join(lines)


def parse(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.export", description=__doc__)
    parser.add_argument("--sweep", required=True, help="KITTI or nuScenes .bin, PCD or npz")
    parser.add_argument("--voxel", type=float, default=0.1, help="edge of a voxel [m]")
    parser.add_argument("--depth", type=int, default=18, help="14, 18 or 34")
    parser.add_argument("--width", type=float, default=0.5, help="factor on all channels")
    parser.add_argument("--threads", default="1,2", help="numbers of threads, comma-separated")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds; times are medians")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    return parser.parse_args(given)


def main() -> int:
    """Run, print the table, write JSON."""
    arguments = parse()
    try:
        library.library()
        if arguments.rounds < 1 or arguments.voxel <= 0:
            raise InputError("--rounds and --voxel must be positive")
        grid = cases.grid_of(torch.from_numpy(load_sweep(arguments.sweep)), arguments.voxel)
        about = {"cpu": cpu_name(), "sweep": Path(arguments.sweep).name}
        about |= {"instruction_set": library.isa_names()[library.best_isa()]}
        about |= {"network": f"MinkUNet{arguments.depth} x{arguments.width:g}"}
        about |= {"voxel_m": arguments.voxel, "voxels": len(grid.coords)}
        print(", ".join(str(value) for value in about.values()), flush=True)
        net = cases.network(arguments.depth, arguments.width, grid)
        rows: list[Row] = []
        for count in map(int, arguments.threads.split(",")):
            rows += rows_of(net, grid, count, arguments.rounds)
            print(table(rows), flush=True)
        if arguments.json:
            write_atomic(arguments.json, json.dumps({"about": about, "rows": rows}, indent=1))
    except PcsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
