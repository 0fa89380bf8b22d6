# SPDX-License-Identifier: Apache-2.0
"""The occupancy grid against the map of the simulator.

    python -m benchmarks.grid simulated:seed=100010,sweeps=40,cameras=0,beams=32 ... --json OUT

Every `--every` sweeps a grid is drawn, as the node draws it: from the newest sweep, and from the
temporal buffer. The map of the simulator says which cells are occupied: those where something
stands, or moves at that time, lower than the height of a vehicle. Cells that the grid does not know
are left out; their share is reported. IoU of occupied (cost of 50 or more) and of free cells, with
the labels of the network and with exact labels; the buffer also without the trails of what moves.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import TypeAlias

import numpy as np
from scipy import ndimage

from pcseg_core.data import Sample, open_recording
from pcseg_core.errors import InputError, PcsegError
from pcseg_core.files import write_atomic
from pcseg_core.labels import LabelSpace, truth_of
from pcseg_core.online.grid import (
    UNKNOWN,
    Grid,
    GridConfig,
    draw_grid,
    memory_s,
    read_costs,
    sweep_evidence,
    voxel_evidence,
)
from pcseg_core.online.pipeline import LabeledSweep, Pipeline, Sweep
from pcseg_core.online.pipeline_config import MotionConfig, PipelineConfig, SmoothingConfig
from pcseg_core.online.segmenter import Segmentation, Segmenter
from pcseg_core.progress import tracked
from pcseg_core.simulation.primitives import corners
from pcseg_core.simulation.raycast import shadowed
from pcseg_core.simulation.recording import SimulatedDrive
from pcseg_core.simulation.world import drive_time
from pcseg_ros.process import keep_freed_memory

VEHICLE_M = 2.35  # what begins higher above the ground does not stand in the way
_DEPTH_M = 10.0
_SAMPLES = 4  # along each edge of a cell
_OCCUPIED = 50

Report: TypeAlias = tuple[dict[str, dict[str, int]], dict[str, list[float]]]


class ExactSegmenter:
    """Gives the sweeps of a drive their exact labels.

    Attributes:
        label_space: classes.
        sample: the next sweep.
    """

    def __init__(self, space: LabelSpace) -> None:
        self.label_space = space
        self.sample: Sample | None = None

    def segment(self, cloud: object, probabilities: bool = False) -> Segmentation:
        """The exact labels, nearly sure."""
        assert self.sample is not None
        labels = truth_of(self.sample, self.label_space).astype(np.int32)
        likely = np.full((len(labels), len(self.label_space)), 0.01, np.float32)
        known = np.flatnonzero(labels >= 0)
        likely[known, labels[known]] = 1 - 0.01 * (len(self.label_space) - 1)
        likely[labels < 0] = 0
        return Segmentation(labels, likely.max(1), {}, likely, self.label_space)

    def set_prompts(self, prompts: object) -> LabelSpace:
        """Not possible."""
        raise InputError("exact labels have no prompts")


def map_of(drive: SimulatedDrive, stamp_ns: int, grid: Grid) -> np.ndarray:
    """(rows, columns) bool: something in the cell, lower than a vehicle, at this time."""
    scene, (rows, columns) = drive.world.scene, grid.costs.shape
    edge, fine = grid.resolution_m, (np.arange(_SAMPLES) + 0.5) / _SAMPLES
    x = grid.origin_m[0] + edge * (np.arange(columns)[:, None] + fine).ravel()
    y = grid.origin_m[1] + edge * (np.arange(rows)[:, None] + fine).ravel()
    around = np.array([x.mean(), y.mean(), grid.height_m])
    table = scene.at(drive_time(stamp_ns), around, 0.75 * edge * max(rows, columns))
    box = corners(table)
    below = box[..., 2].min(1) - scene.ground.height(*table["center"][:, :2].T)
    table = table[below < VEHICLE_M]
    xy = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    # From below the foundations. Not quite upright: the sides of posts are parallel to that.
    up = np.array([0.01, 0.005, 1.0])
    surface = np.column_stack([xy, scene.ground.height(*xy.T)])
    points = surface - _DEPTH_M * up - around
    covered = shadowed(table, around, points.astype(np.float32), up / np.linalg.norm(up))
    return covered.reshape(rows, _SAMPLES, columns, _SAMPLES).any((1, 3))


def compare(grid: Grid, occupied: np.ndarray) -> dict[str, int]:
    """Counts of cells: known ones, and intersections and unions of both kinds.

    `near` counts the occupied cells of each that have one of the other among their neighbors.
    """
    known = grid.costs != UNKNOWN
    found, truth = known & (grid.costs >= _OCCUPIED), known & occupied
    free, open_ = known & ~found, known & ~occupied
    wide = np.ones((3, 3), bool)
    return {
        "cells": grid.costs.size,
        "known": int(known.sum()),
        "occupied both": int((found & truth).sum()),
        "occupied any": int((found | truth).sum()),
        "free both": int((free & open_).sum()),
        "free any": int((free | open_).sum()),
        "found": int(found.sum()),
        "found near": int((found & ndimage.binary_dilation(occupied, wide)).sum()),
        "true": int(truth.sum()),
        "true near": int((truth & ndimage.binary_dilation(found, wide)).sum()),
    }


def figures(counts: dict[str, int]) -> dict[str, float]:
    """Shares from the counts of all grids."""

    def share(part: str, whole: str) -> float:
        return round(counts[part] / max(counts[whole], 1), 4)

    return {
        "known": share("known", "cells"),
        "iou occupied": share("occupied both", "occupied any"),
        "iou free": share("free both", "free any"),
        "found within one cell": share("found near", "found"),
        "true within one cell": share("true near", "true"),
    }


class Drawer:
    """Draws both kinds of grids of a drive.

    Args:
        name: of the labels.
        pipeline: labels the sweeps and smooths them.
        config: of the grids.
        moving: also find what moves; only the grids of the buffer are other ones then.
    """

    def __init__(
        self, name: str, pipeline: Pipeline, config: GridConfig, moving: bool = False
    ) -> None:
        self.name, self.pipeline, self.config, self.moving = name, pipeline, config, moving
        self.costs = read_costs(config.costs, pipeline.label_space)
        self.times_ms: dict[str, list[float]] = defaultdict(list)

    def draw(self, labeled: LabeledSweep) -> dict[str, Grid]:
        """The grids by what they are drawn from."""
        assert labeled.pose is not None
        newest = sweep_evidence(labeled)
        grids = {}
        for source in ("buffer",) if self.moving else ("newest sweep", "buffer"):
            started = time.thread_time()
            evidence = newest
            if source == "buffer":
                span = memory_s(self.config.decay_s)
                voxels = self.pipeline.remembered(labeled, span)
                assert voxels is not None
                evidence = voxel_evidence(voxels, self.config.decay_s)
            pose = labeled.pose
            grids[source] = draw_grid(evidence, newest.points, pose, self.costs, self.config)
            self.times_ms[source].append(1e3 * (time.thread_time() - started))
        return grids


def measure(drive: SimulatedDrive, segmenter: Segmenter, config: GridConfig, every: int) -> Report:
    """Counts of each (labels, source), and the CPU times of drawing."""
    exact = ExactSegmenter(segmenter.label_space)
    smooth = PipelineConfig(
        motion=MotionConfig(deskew=True),
        temporal=SmoothingConfig(enabled=True),
        match_intensity=False,
    )
    drawers = [
        Drawer("network", Pipeline(segmenter, smooth), config),
        Drawer("exact labels", Pipeline(exact, smooth), config),
        Drawer("network, moving", Pipeline(segmenter, smooth), config, moving=True),
        Drawer("exact labels, moving", Pipeline(exact, smooth), config, moving=True),
    ]
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for index, sample in tracked(enumerate(drive), drive.name, len(drive)):
        exact.sample = sample
        occupied: np.ndarray | None = None  # all grids of a sweep have the same cells
        for drawer in drawers:
            labeled = drawer.pipeline.process(Sweep.of(sample), moving=drawer.moving)
            if index % every != every - 1:
                continue
            for source, grid in drawer.draw(labeled).items():
                if occupied is None:
                    occupied = map_of(drive, sample.cloud.stamp_ns, grid)
                for key, number in compare(grid, occupied).items():
                    counts[f"{drawer.name}, {source}"][key] += number
    return counts, drawers[0].times_ms


def main() -> int:
    """Measure all drives and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("drives", nargs="+", help="simulated:...")
    parser.add_argument("--checkpoint", default="bundled")
    parser.add_argument("--every", type=int, default=10, help="sweeps from one grid to the next")
    parser.add_argument("--resolution", type=float, default=0.2, help="edge of a cell [m]")
    parser.add_argument("--size", type=float, default=40.0, help="edge of the grid [m]")
    parser.add_argument("--decay", type=float, default=1.0, help="of the evidence [s]")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    keep_freed_memory()
    config = GridConfig(
        frame="fixed", resolution_m=chosen.resolution, size_m=chosen.size, decay_s=chosen.decay
    )
    total: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    times: dict[str, list[float]] = defaultdict(list)
    try:
        segmenter = Segmenter.load(chosen.checkpoint)
        for source in chosen.drives:
            drive = open_recording(source)
            if not isinstance(drive, SimulatedDrive):
                raise InputError(f"{source}: only simulated drives have an exact map")
            counts, spent = measure(drive, segmenter, config, chosen.every)
            for name, values in counts.items():
                for key, number in values.items():
                    total[name][key] += number
            for name, values in spent.items():
                times[name] += values
    except PcsegError as error:
        sys.exit(f"error: {error}")
    report = {name: figures(values) for name, values in total.items()}
    for name, values in report.items():
        print(name, ", ".join(f"{key} {100 * value:.1f} %" for key, value in values.items()))
    medians = {name: round(float(np.median(values)), 2) for name, values in times.items()}
    print("CPU time of a grid [ms]:", medians)
    if chosen.json:
        write_atomic(chosen.json, json.dumps({"figures": report, "cpu_ms": medians}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
