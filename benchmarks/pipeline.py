# SPDX-License-Identifier: Apache-2.0
"""Time of the pipeline, stage by stage: PointCloud2 in, labeled PointCloud2 out.

    python -m benchmarks.pipeline --sweep FILE --json OUT

The engines run in turn within each round. The network has random weights unless --checkpoint is
given; its time does not depend on them. A second table compares the stages around the network,
and the projection of the sweep into six cameras, with and without the native library.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter as now
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.measure import cpu_name, threads, wall_and_cpu
from benchmarks.sweeps import load_sweep
from pcseg_core import projection
from pcseg_core.camera import CameraModel
from pcseg_core.checkpoint import CheckpointMeta
from pcseg_core.cloud import EncodedCloud, append_fields, encode_cloud, read_cloud
from pcseg_core.errors import InputError, PcsegError
from pcseg_core.files import write_atomic
from pcseg_core.geometry import from_euler
from pcseg_core.labels import LabelSpace, to_wire
from pcseg_core.models.student import Student, StudentConfig
from pcseg_core.models.sweep_input import sweep_input
from pcseg_core.native import library
from pcseg_core.online.pipeline import Pipeline, Sweep
from pcseg_core.online.point_labels import point_labels
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.projection import project_cloud
from pcseg_core.sparse import SparseTensor

STAGES = ("read", "voxelize", "infer", "label", "write", "total")
# Engine -> backend and precision.
ENGINES = {
    "native bf16": ("native", "bf16"),
    "native fp32": ("native", "fp32"),
    "torch fp32": ("torch", "fp32"),
    "spconv fp32 t1": ("torch", "fp32"),
}
PEER = "spconv fp32 t1"


def message(points: np.ndarray, intensity_scale: float) -> EncodedCloud:
    """The sweep (N, 4) as a driver would publish it: x, y, z, intensity, 16 bytes a point."""
    names = ("x", "y", "z", "intensity")
    columns = {name: np.ascontiguousarray(points[:, i]) for i, name in enumerate(names)}
    columns["intensity"] = columns["intensity"] * np.float32(intensity_scale)
    return encode_cloud(columns, 1, len(points))


def run_once(pipeline: Pipeline, sweep: EncodedCloud) -> dict[str, float]:
    """Wall time of every stage in ms."""
    start = now()
    cloud = read_cloud(sweep, intensity_scale=1.0)
    read = now()
    labeled = pipeline.process(Sweep(cloud))
    processed = now()
    fields = {"label": to_wire(labeled.labels), "confidence": labeled.confidence}
    encoded = append_fields(sweep, fields)
    done = now()
    assert encoded.width == sweep.width
    return {
        **labeled.inference_ms,
        "read": 1e3 * (read - start),
        "write": 1e3 * (done - processed),
        "total": 1e3 * (done - start),
    }


def engine(name: str, student: Student, meta: CheckpointMeta) -> Callable[[EncodedCloud], Any]:
    """A function that runs the pipeline with one engine."""
    backend, precision = ENGINES[name]
    space = LabelSpace.from_dict(meta.label_space)
    segmenter = Segmenter(student, space, meta, "cpu", precision, backend=backend)  # type: ignore[arg-type]
    if name == PEER:
        from benchmarks.spconv_peer import SpconvUNet

        peer = SpconvUNet(student.network)
        segmenter._network = lambda x: SparseTensor(x.coords, _one_thread(peer, x))

    pipeline = Pipeline(segmenter)
    return lambda sweep: run_once(pipeline, sweep)


def _one_thread(peer: Callable[..., torch.Tensor], x: SparseTensor) -> torch.Tensor:
    """spconv's CPU path is wrong with more than one thread."""
    with threads(1):
        return peer(x.coords, x.feats)


def available_engines(spconv: bool) -> list[str]:
    """Engines that can run here; prints a line to stderr for each one left out."""
    names = list(ENGINES)
    missing = library.load()
    if isinstance(missing, str):
        print(f"native engine left out: {missing}", file=sys.stderr)
        names = [n for n in names if not n.startswith("native")]
    elif not library.has_bfloat16():
        print("native bf16 left out: this CPU does not multiply bfloat16", file=sys.stderr)
        names.remove("native bf16")
    try:
        import spconv.pytorch
    except ImportError:
        spconv = False
    return names if spconv else [n for n in names if n != PEER]


def measure(
    student: Student, meta: CheckpointMeta, sweep: EncodedCloud, engines: list[str], rounds: int
) -> list[dict[str, Any]]:
    """One row per engine with the medians of all stages."""
    runs = {name: engine(name, student, meta) for name in engines}
    times: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
    for turn in range(rounds + 2):
        for name, run in runs.items():
            stages = run(sweep)
            if turn >= 2:
                times[name].append(stages)
    medians = {
        name: {s: statistics.median(t[s] for t in values) for s in STAGES}
        for name, values in times.items()
    }
    rows = []
    for name, stages in medians.items():
        config = student.config
        row = {"kind": "pipeline", "network": f"MinkUNet{config.depth}", "width": config.width}
        row |= {"engine": name, "precision": name.split()[1], "threads": torch.get_num_threads()}
        row |= {"points": sweep.width, "voxel_m": config.voxel_size_m}
        row |= {"median_ms": stages["total"], "hz": 1e3 / stages["total"]}
        row |= {"ratio": _ratio(medians, PEER, stages), "stages_ms": stages}
        row |= {"ratio_to_torch": _ratio(medians, "torch fp32", stages), "fraction_of_peak": None}
        row |= {
            "machine": machine(),
            "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        rows.append(row)
    return rows


def _ratio(medians: dict[str, Any], peer: str, stages: dict[str, float]) -> float | None:
    return medians[peer]["total"] / stages["total"] if peer in medians else None


def stage_rows(student: Student, points: np.ndarray, rounds: int) -> list[dict[str, Any]]:
    """Stages around the network on one thread: torch or numpy, and the native library."""
    rows = []
    with threads(1), torch.inference_mode():
        for stage, actions in _stages(student, points).items():
            wall, cpu = wall_and_cpu(actions, rounds)
            row = {"kind": "stage", "stage": stage, "threads": 1, "points": len(points)}
            row |= {"median_ms": wall, "cpu_ms": cpu, "ratio": cpu["plain"] / cpu["native"]}
            rows.append(row)
    return rows


def _stages(student: Student, points: np.ndarray) -> dict[str, dict[str, Callable[[], object]]]:
    """Stage -> the plain and the native way."""
    xyz, intensity = (np.ascontiguousarray(part) for part in (points[:, :3], points[:, 3]))
    device = torch.device("cpu")
    sweep = sweep_input(student, xyz, intensity, device)
    rows, classes = len(sweep.sparse or ()), student.network.out_channels
    logits = [3 * torch.randn(rows, classes)]
    cameras = six_cameras()

    def read(backend: str) -> object:
        return sweep_input(student, xyz, intensity, device, backend)

    def label(backend: str, probabilities: bool) -> object:
        return point_labels(logits, sweep.inverse, classes, None, probabilities, backend)

    def project() -> object:
        return [project_cloud(xyz, pose, camera) for pose, camera in cameras]

    def project_in_numpy() -> object:
        with mock.patch.object(projection, "optional_library", return_value=None):
            return project()

    ways = {"plain": "torch", "native": "native"}
    return {
        "voxelize": {way: partial(read, name) for way, name in ways.items()},
        "label": {way: partial(label, name, False) for way, name in ways.items()},
        "label, all probabilities": {way: partial(label, name, True) for way, name in ways.items()},
        "project into 6 cameras": {"plain": project_in_numpy, "native": project},
    }


def six_cameras() -> list[tuple[np.ndarray, CameraModel]]:
    """T_cam_lidar and model of six cameras around the vehicle, 1600x900, as on nuScenes."""
    camera = CameraModel.pinhole(1266.0, 1266.0, 800.0, 450.0, 1600, 900)
    optical = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], float)
    turns = [from_euler(0, 0, -yaw) for yaw in np.arange(6) * np.pi / 3]
    return [(optical @ turn, camera) for turn in turns]


def build(arguments: argparse.Namespace) -> tuple[Student, CheckpointMeta]:
    """The student of a checkpoint, or one with random weights."""
    if arguments.checkpoint:
        segmenter = Segmenter.load(arguments.checkpoint, device="cpu")
        return segmenter.student, segmenter.meta
    torch.manual_seed(0)
    config = StudentConfig(
        depth=arguments.depth, width=arguments.width, voxel_size_m=arguments.voxel
    )
    space = LabelSpace.load("street")
    meta = CheckpointMeta(student=config.model_dump(mode="json"), label_space=space.to_dict())
    return Student(config, len(space)), meta


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown table of the rows."""
    head = ["engine", *STAGES[:-1], "total ms", "Hz", "vs spconv", "vs torch"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [row["engine"], *(f"{row['stages_ms'][s]:.1f}" for s in STAGES[:-1])]
        cells += [f"{row['median_ms']:.1f}", f"{row['hz']:.1f}"]
        cells += [f"{r:.1f}x" if (r := row[k]) else "" for k in ("ratio", "ratio_to_torch")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def stage_table(rows: list[dict[str, Any]]) -> str:
    """Markdown table of `stage_rows`."""
    lines = ["| stage, 1 thread | plain CPU ms | native CPU ms | | plain ms | native ms |"]
    lines.append("|" + "---|" * 6)
    for row in rows:
        cpu, wall = row["cpu_ms"], row["median_ms"]
        cells = [
            row["stage"],
            f"{cpu['plain']:.1f}",
            f"{cpu['native']:.1f}",
            f"{row['ratio']:.1f}x",
        ]
        cells += [f"{wall['plain']:.1f}", f"{wall['native']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def machine() -> str:
    """CPU, instruction sets of the native library and load."""
    load = os.getloadavg()[0]
    missing = isinstance(library.load(), str)
    isa = "no native library" if missing else library.isa_names()[library.best_isa()]
    return f"{cpu_name()}, {isa}, {torch.get_num_threads()} threads, load {load:.1f}"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sweep", required=True, help="KITTI or nuScenes .bin, PCD or npz")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--checkpoint", help="run directory or checkpoint; default random weights")
    parser.add_argument("--depth", type=int, default=18)
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--voxel", type=float, default=0.1, help="edge of a voxel [m]")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-spconv", action="store_true")
    arguments = parser.parse_args()
    try:
        if arguments.rounds < 1:
            raise InputError(f"--rounds {arguments.rounds}: expected at least 1")
        points = load_sweep(arguments.sweep)
        scale = 1.0 if points[:, 3].max() <= 1.5 else 1 / 255
        student, meta = build(arguments)
        names = available_engines(not arguments.no_spconv)
        rows = measure(student, meta, message(points, scale), names, arguments.rounds)
        print(f"{machine()}\n\n{table(rows)}")
        if not isinstance(library.load(), str):
            stages = stage_rows(student, points, arguments.rounds)
            print(f"\n{stage_table(stages)}")
            rows += stages
        if arguments.json:
            write_atomic(arguments.json, json.dumps(rows, indent=1))
    except PcsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
