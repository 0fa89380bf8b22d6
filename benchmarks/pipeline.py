# SPDX-License-Identifier: Apache-2.0
"""Time of the pipeline, stage by stage: PointCloud2 in, labeled PointCloud2 out.

    python -m benchmarks.pipeline --sweep FILE --json OUT

The engines run in turn within each round. The network has random weights unless --checkpoint is
given; its time does not depend on them. A second figure is the time of projecting the sweep into
six cameras.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter as now
from typing import Any

import numpy as np
import torch

from benchmarks.measure import interleaved
from benchmarks.sweeps import load_sweep
from pcseg_core.camera import CameraModel
from pcseg_core.checkpoint import CheckpointMeta
from pcseg_core.cloud import EncodedCloud, append_fields, encode_cloud, read_cloud
from pcseg_core.errors import InputError, PcsegError
from pcseg_core.files import write_atomic
from pcseg_core.labels import LabelSpace, to_wire
from pcseg_core.models.student import Student, StudentConfig
from pcseg_core.native import library
from pcseg_core.online.pipeline import Pipeline, Sweep
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.projection import project_cloud
from pcseg_core.sparse import SparseTensor

STAGES = ("read", "prepare", "voxelize", "infer", "label", "write", "total")
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
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return peer(x.coords, x.feats)
    finally:
        torch.set_num_threads(before)


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
        row |= {"rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
        rows.append(row)
    return rows


def _ratio(medians: dict[str, Any], peer: str, stages: dict[str, float]) -> float | None:
    return medians[peer]["total"] / stages["total"] if peer in medians else None


def projection_row(points: np.ndarray, rounds: int) -> dict[str, Any]:
    """Six cameras around the vehicle, 1600x900, as on nuScenes, with the occlusion test."""
    camera = CameraModel.pinhole(1266.0, 1266.0, 800.0, 450.0, 1600, 900)
    optical = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], float)
    xyz = np.ascontiguousarray(points[:, :3])
    poses = []
    for yaw in np.arange(6) * np.pi / 3:
        turn = np.eye(4)
        turn[:2, :2] = [[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]]
        poses.append(optical @ turn)
    times = interleaved({"six": lambda: [project_cloud(xyz, T, camera) for T in poses]}, rounds)
    return {"kind": "projection", "cameras": 6, "points": len(xyz), "median_ms": times["six"]}


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
        rows.append(projection_row(points, arguments.rounds))
        print(table(rows[:-1]))
        print(f"\nprojection into 6 cameras with occlusion: {rows[-1]['median_ms']:.1f} ms")
        if arguments.json:
            write_atomic(arguments.json, json.dumps(rows, indent=1))
    except PcsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
