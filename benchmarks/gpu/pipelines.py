# SPDX-License-Identifier: Apache-2.0
"""The whole way of a sweep on a GPU: points on the CPU in, labels on the CPU out."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.gpu.inputs import VOXELS_M, networks
from benchmarks.gpu.machine import Action, Machine, Row, in_turns, quantiles
from benchmarks.gpu.networks import add_ratios
from pcseg_core.bundled import BUNDLED
from pcseg_core.checkpoint import CheckpointMeta
from pcseg_core.cloud import PointCloud
from pcseg_core.labels import LabelSpace
from pcseg_core.models.student import Points, Student, StudentConfig
from pcseg_core.models.sweep_input import usable_points
from pcseg_core.online.pipeline import Pipeline, Sweep
from pcseg_core.online.point_labels import point_labels
from pcseg_core.online.segmenter import Segmenter

_ENGINES = (("torch", "fp32"), ("triton", "fp32"), ("triton", "fp16"), ("triton", "bf16"))
_ENGINES += (("torchsparse", "fp32"),)


def sweeps(machine: Machine, points: np.ndarray) -> Iterator[Row]:
    """Time of a sweep and agreement of its labels with those of float32, per network and engine."""
    cloud = PointCloud(np.ascontiguousarray(points[:, :3]), np.ascontiguousarray(points[:, 3]))
    for label, student, space, meta in _students(machine, points):
        segmenters, rows = {}, {}
        for backend, precision in _ENGINES:
            if not machine.usable(backend) or _no_bfloat16(machine, precision):
                continue
            name = f"{backend} {precision}"
            rows[name] = {**label, "engine": name, "precision": precision, "points": len(points)}
            try:
                segmenters[name] = _segmenter(machine, student, space, meta, backend, precision)
                rows[name]["first_s"] = (
                    machine.wall_ms(partial(segmenters[name].segment, cloud)) / 1e3
                )
            except Exception as error:  # the other engines go on
                segmenters.pop(name, None)
                rows[name]["failed"] = f"{type(error).__name__}: {error}"
        yield from _measured(machine, cloud, segmenters, rows)


def _no_bfloat16(machine: Machine, precision: str) -> bool:
    return precision == "bf16" and machine.device.type == "cpu"


def _segmenter(
    machine: Machine, student: Student, space: LabelSpace, meta: CheckpointMeta, *how: Any
) -> Segmenter:
    backend, precision = how
    student = copy.deepcopy(student)
    return Segmenter(student, space, meta, str(machine.device), precision, backend=backend)


def _students(
    machine: Machine, points: np.ndarray
) -> Iterator[tuple[Row, Student, LabelSpace, CheckpointMeta]]:
    """The checkpoint of the package, and networks with random weights."""
    bundled = Segmenter.load(BUNDLED, device="cpu")
    space = bundled.label_space
    label: Row = {"kind": "pipeline", "network": "bundled", "width": bundled.student.config.width}
    label["voxel_m"] = bundled.student.config.voxel_size_m
    yield label, bundled.student, space, bundled.meta
    for depth, width in networks(machine):
        config = StudentConfig(depth=depth, width=width, voxel_size_m=VOXELS_M[-1])
        meta = CheckpointMeta(student=config.model_dump(mode="json"), label_space=space.to_dict())
        label = {"kind": "pipeline", "network": f"MinkUNet{depth}", "width": width}
        student = _settled(config, len(space), torch.from_numpy(points))
        yield label | {"voxel_m": VOXELS_M[-1]}, student, space, meta


def _settled(config: StudentConfig, classes: int, points: torch.Tensor) -> Student:
    """A student with random weights whose batch norms fit the sweep, so that values stay tame."""
    torch.manual_seed(0)
    student = Student(config, classes).train()
    for module in student.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = 1.0
    batch = torch.zeros(len(points), dtype=torch.int64)
    with torch.no_grad():
        student(Points(points[:, :3].contiguous(), points[:, 3].contiguous(), batch))
    return student.eval()


def _measured(
    machine: Machine, cloud: PointCloud, segmenters: dict[str, Segmenter], rows: dict[str, Row]
) -> Iterator[Row]:
    actions: dict[str, Action] = {
        name: partial(Pipeline(segmenter).process, Sweep(cloud))
        for name, segmenter in segmenters.items()
    }
    for name, times in in_turns(
        machine, actions, machine.rounds if machine.quick else 2 * machine.rounds
    ).items():
        rows[name] |= quantiles(times)
    labels = {name: segmenter.segment(cloud).labels for name, segmenter in segmenters.items()}
    for name, segmenter in segmenters.items():
        if "torch fp32" in labels:
            rows[name]["labels_changed"] = float((labels[name] != labels["torch fp32"]).mean())
        rows[name]["stages_ms"] = _stages(machine, segmenter, cloud)
        rows[name]["peak_mib"] = machine.peak_mib(partial(segmenter.segment, cloud))
    add_ratios(rows)
    yield from rows.values()


@torch.inference_mode()
def _stages(machine: Machine, segmenter: Segmenter, cloud: PointCloud) -> dict[str, float]:
    """Median time of each stage, the GPU idle in between [ms]."""
    samples: dict[str, list[float]] = {}
    for _ in range(1 if machine.quick else 9):
        clock = _Stopwatch(machine, samples)
        limit = segmenter.student.config.max_range_m
        points, *_ = usable_points(cloud.xyz, cloud.intensity, limit, segmenter.device)
        clock.stop("points to the GPU")
        voxels = segmenter.student.voxelize(points)
        clock.stop("voxels")
        sparse = segmenter.student.sparse_input(points, voxels, segmenter.backend)
        clock.stop("input")
        for level in range(5):
            sparse.cache.kernel_map(1 << level, 3, 1)
            if level < 4:
                assert sparse.cache.kernel_map(1 << level, 2, 2).inverse is not None
        clock.stop("kernel maps")
        logits = segmenter._trained_logits(sparse)
        clock.stop("network")
        point_labels(logits, voxels.inverse, len(segmenter.label_space))
        clock.stop("labels to the CPU")
    return {name: float(np.median(values)) for name, values in samples.items()}


class _Stopwatch:
    def __init__(self, machine: Machine, samples: dict[str, list[float]]) -> None:
        machine.synchronize()
        self._machine, self._samples = machine, samples
        self._last = time.perf_counter()

    def stop(self, stage: str) -> None:
        self._machine.synchronize()
        now = time.perf_counter()
        self._samples.setdefault(stage, []).append(1e3 * (now - self._last))
        self._last = now


def profile(machine: Machine, points: np.ndarray) -> str:
    """Table of torch's profiler over five sweeps of the bundled checkpoint."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    cloud = PointCloud(np.ascontiguousarray(points[:, :3]), np.ascontiguousarray(points[:, 3]))
    backend = "triton" if machine.usable("triton") else "auto"
    segmenter = Segmenter.load(BUNDLED, str(machine.device), backend=backend)
    segmenter.segment(cloud)
    kinds = [ProfilerActivity.CPU]
    kinds += [ProfilerActivity.CUDA] if machine.device.type == "cuda" else []
    with record(activities=kinds) as recorded:
        for _ in range(1 if machine.quick else 5):
            segmenter.segment(cloud)
        machine.synchronize()
    averages = recorded.key_averages()
    device = machine.device.type == "cuda"
    tables = [averages.table(sort_by="self_cpu_time_total", row_limit=40)]
    if device:
        tables.insert(0, averages.table(sort_by="self_device_time_total", row_limit=40))
    return "\n".join(tables)
