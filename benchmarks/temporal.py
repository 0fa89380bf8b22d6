# SPDX-License-Identifier: Apache-2.0
"""Effect and cost of smoothing over time, on whole recordings.

    python -m benchmarks.temporal simulated:seed=100010,sweeps=40,cameras=0 ... --json OUT
    python -m benchmarks.temporal kitti-raw:DIR --checkpoint RUN --json OUT

The pipeline with and without smoothing labels the same deskewed sweeps. In simulated drives the
moving points are known: figures are split into standing points, moving points, and the wake:
standing points within 0.3 m of a place where something moved in the last two seconds, where
smoothing would smear. The time of the fusion stage is compared with that of `np.unique` on the
voxels of the same sweep.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from pcseg_core.data import Recording, Sample, open_recording, readable
from pcseg_core.errors import InputError, PcsegError
from pcseg_core.evaluation.methods import variants
from pcseg_core.files import write_atomic
from pcseg_core.geometry import transform
from pcseg_core.labels import IGNORE, truth_of
from pcseg_core.metrics.confusion import Confusion
from pcseg_core.metrics.flicker import Flicker, Pairing
from pcseg_core.online.pipeline import Sweep
from pcseg_core.online.pipeline_config import MotionConfig, PipelineConfig, SmoothingConfig
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.progress import tracked
from pcseg_core.simulation.recording import SimulatedDrive
from pcseg_ros.process import keep_freed_memory

METHODS = ("single sweep", "smoothed")
PARTS = ("all", "standing", "moving", "wake")
WAKE_M, WAKE_S = 0.3, 2.0


@dataclass
class Totals:
    """Counts over recordings.

    Attributes:
        classes: number of classes.
        confusions: (method, part) -> confusion.
        flickers: method -> (changed, pairs) of standing points (of all points if the moving ones
            are unknown).
        times: "fusion" and "unique" -> wall time of each sweep [ms].
    """

    classes: int
    confusions: dict[tuple[str, str], Confusion] = field(default_factory=dict)
    flickers: dict[str, list[int]] = field(default_factory=lambda: {m: [0, 0] for m in METHODS})
    times: dict[str, list[float]] = field(default_factory=dict)
    points: int = 0
    sweeps: int = 0

    def count(self, method: str, part: str, labels: np.ndarray, truth: np.ndarray) -> None:
        """Add points of a part."""
        empty = Confusion(self.classes)
        self.confusions.setdefault((method, part), empty).update(labels, truth)

    def as_dict(self) -> dict[str, Any]:
        """All figures as plain values; shares are fractions."""
        figures: dict[str, Any] = {"sweeps": self.sweeps, "points": self.points}
        for method in METHODS:
            changed, pairs = self.flickers[method]
            figures[method] = {"flicker": round(changed / max(pairs, 1), 5)}
            for part in PARTS:
                confusion = self.confusions.get((method, part))
                if confusion is not None and confusion.points:
                    figures[method][part] = {
                        "miou": round(confusion.miou, 4),
                        "accuracy": round(confusion.accuracy, 4),
                        "points": confusion.points,
                        "iou": [round(v, 4) if here else None for v, here in _ious(confusion)],
                        "points_of": confusion.truth_counts.tolist(),
                    }
        for name, values in self.times.items():
            figures[f"{name}_ms"] = dict(
                zip(("min", "p50", "p95"), np.percentile(values, (0, 50, 95)).round(2).tolist())
            )
        return figures


def _ious(confusion: Confusion) -> zip[tuple[float, bool]]:
    """IoU of each class, and whether the class is there."""
    return zip(confusion.iou.tolist(), confusion.present.tolist())


def measure(
    recording: Recording, segmenter: Segmenter, config: SmoothingConfig, to: Totals
) -> None:
    """Add a recording to the totals."""
    if recording.pose_source == "none":
        raise InputError(f"{recording.name}: has no poses, which smoothing over time needs")
    pipeline = PipelineConfig(motion=MotionConfig(deskew=True), temporal=config)
    smoothed, single = (method.pipeline for method in variants("", "", segmenter, pipeline))
    pairing, flickers = Pairing(), {method: Flicker() for method in METHODS}
    movers, wake = moving_instances(recording), Wake()
    stood: np.ndarray | None = None
    for _, sample in tracked(readable(recording), recording.name, len(recording)):
        sweep = Sweep.of(sample)
        after, before = smoothed.process(sweep), single.process(sweep)  # share the network's run
        xyz, pose = before.cloud.xyz, sample.T_world_lidar
        assert pose is not None
        to.times.setdefault("fusion", []).append(after.stages_ms["fusion"])
        to.times.setdefault("unique", []).append(unique_ms(xyz, config.voxel_m))
        world = transform(pose, xyz.astype(np.float64))
        moving = np.isin(sample.instances, movers) if movers is not None else None
        pairs = pairing.add(world)
        if pairs is not None and moving is not None and stood is not None:
            keep = ~moving[pairs[0]] & stood[pairs[1]]
            pairs = pairs[0][keep], pairs[1][keep]
        stood = None if moving is None else ~moving
        given = before.labels, after.labels
        for method, labels in zip(METHODS, given):
            flickers[method].add(labels, pairs)
        if moving is not None:
            parts = {
                "all": np.ones(len(moving), bool),
                "standing": ~moving,
                "moving": moving,
                "wake": wake.add(world, moving, sample.stamp_ns),
            }
            count_parts(sample, segmenter, given, parts, to)
        to.sweeps += 1
        to.points += len(xyz)
    for method, flicker in flickers.items():
        to.flickers[method][0] += flicker.changed
        to.flickers[method][1] += flicker.pairs


def unique_ms(xyz: np.ndarray, voxel_m: float) -> float:
    """Wall time of `np.unique` on the voxels of a sweep [ms]."""
    cells = np.floor(xyz[np.isfinite(xyz).all(1)] / voxel_m).astype(np.int64)
    keys = cells @ np.array([1 << 42, 1 << 21, 1])
    started = time.perf_counter()
    np.unique(keys, return_inverse=True)
    return 1e3 * (time.perf_counter() - started)


def count_parts(
    sample: Sample,
    segmenter: Segmenter,
    labels: tuple[np.ndarray, np.ndarray],
    parts: dict[str, np.ndarray],
    to: Totals,
) -> None:
    """Count the points of each part."""
    truth = truth_of(sample, segmenter.label_space)
    for method, given in zip(METHODS, labels):
        for part, mask in parts.items():
            to.count(method, part, given[mask].astype(np.int64), truth[mask])


def moving_instances(recording: Recording) -> np.ndarray | None:
    """Instance ids of the moving objects of a simulated drive; None for other recordings."""
    if not isinstance(recording, SimulatedDrive):
        return None
    ids = [mover.parts["instance"] for mover in recording.world.scene.movers]
    return np.unique(np.concatenate(ids)) if ids else np.array([IGNORE - 1])


class Wake:
    """Finds standing points at places where something moved in the last seconds."""

    def __init__(self) -> None:
        self._past: list[tuple[int, np.ndarray]] = []

    def add(self, world: np.ndarray, moving: np.ndarray, stamp_ns: int) -> np.ndarray:
        """(N,) bool: standing points of a sweep near a place where something moved before."""
        self._past = [(s, p) for s, p in self._past if stamp_ns - s <= WAKE_S * 1e9]
        wake = np.zeros(len(world), bool)
        past = [points for _, points in self._past if len(points)]
        finite = np.flatnonzero(np.isfinite(world).all(1) & ~moving)
        if past:
            tree = cKDTree(np.concatenate(past))
            distance, _ = tree.query(world[finite], distance_upper_bound=WAKE_M)
            wake[finite] = np.isfinite(distance)
        self._past.append((stamp_ns, world[moving & np.isfinite(world).all(1)]))
        return wake


def table(figures: dict[str, Any]) -> str:
    """The figures as text."""
    single, smoothed = (figures[method] for method in METHODS)
    lines = [f"{figures['sweeps']} sweeps, {figures['points']:,} points"]
    lines.append(
        f"flicker %        {100 * single['flicker']:6.2f} -> {100 * smoothed['flicker']:6.2f}"
    )
    for part in PARTS:
        if part in single:
            before, after = single[part], smoothed[part]
            lines.append(
                f"{part:9} mIoU % {100 * before['miou']:6.2f} -> {100 * after['miou']:6.2f}   "
                f"accuracy % {100 * before['accuracy']:6.2f} -> {100 * after['accuracy']:6.2f}   "
                f"({before['points']:,} points)"
            )
    for name in ("fusion", "unique"):
        wall = figures[f"{name}_ms"]
        lines.append(f"{name} ms: p50 {wall['p50']}, p95 {wall['p95']}, min {wall['min']}")
    return "\n".join(lines)


def main() -> int:
    """Run from the command line."""
    keep_freed_memory()  # as the node does
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recordings", nargs="+", help="bags or reader:path, with poses")
    parser.add_argument("--checkpoint", default="bundled")
    parser.add_argument("--voxel", type=float, help="edge of the voxels [m]")
    parser.add_argument("--memory", type=float, help="time in which evidence fades to 1/e [s]")
    parser.add_argument("--gate", type=float, help="of the motion gate [m]; 0 turns it off")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    asked = {"voxel_m": arguments.voxel, "memory_s": arguments.memory, "gate_m": arguments.gate}
    given = {k: v for k, v in asked.items() if v is not None}
    config = SmoothingConfig(enabled=True, **given)
    try:
        segmenter = Segmenter.load(arguments.checkpoint)
        totals = Totals(len(segmenter.label_space))
        for source in arguments.recordings:
            measure(open_recording(source), segmenter, config, totals)
    except PcsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    figures = totals.as_dict()
    print(table(figures))
    if arguments.json:
        content = {
            "recordings": arguments.recordings,
            "checkpoint": arguments.checkpoint,
            "buffer": config.model_dump(),
            **figures,
        }
        write_atomic(arguments.json, json.dumps(content, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
