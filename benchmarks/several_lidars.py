# SPDX-License-Identifier: Apache-2.0
"""Several LiDARs: labels of united sweeps against those of each LiDAR by itself, and their cost.

    python -m benchmarks.several_lidars simulated:seed=100040,sweeps=20,cameras=0,lidars=3 ...

mIoU and accuracy of the points of each LiDAR, once labeled in the united sweep and once alone, and
of the points of all. Then the CPU time of a sweep [ms]: uniting, deskewing to one moment (which one
LiDAR needs too), and the united message.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pcseg_core.cloud import PointCloud, encode_cloud
from pcseg_core.data import open_recording
from pcseg_core.errors import InputError, PcsegError
from pcseg_core.files import write_atomic
from pcseg_core.labels import grouping, regroup
from pcseg_core.metrics import Confusion
from pcseg_core.online.pipeline import Pipeline, Sweep
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.progress import tracked
from pcseg_core.simulation.recording import SimulatedDrive
from pcseg_core.uniting import Part, unite, united_message
from pcseg_ros.process import keep_freed_memory

Figures = dict[str, dict[str, float]]


class Comparison:
    """Labels drives in both ways and counts.

    Args:
        segmenter: the network.
    """

    def __init__(self, segmenter: Segmenter) -> None:
        self._segmenter, self._classes = segmenter, len(segmenter.label_space)
        self.counts: dict[str, Confusion] = defaultdict(lambda: Confusion(self._classes))
        self.cpu_ms: dict[str, list[float]] = defaultdict(list)
        self.points: list[int] = []

    def add(self, drive: SimulatedDrive) -> None:
        """Label the sweeps of a drive with several LiDARs."""
        lidars = [spec.name for spec in drive.world.lidars]
        table = grouping(drive.label_space, self._segmenter.label_space)
        united, *alone = [Pipeline(self._segmenter) for _ in range(len(lidars) + 1)]
        for index in tracked(range(len(drive)), drive.name, len(drive)):
            sample, number = drive[index], index * drive.options.stride
            assert sample.labels is not None and sample.cloud.source is not None
            truth = regroup(sample.labels, table)
            whole = united.process(Sweep.of(sample)).labels
            own = np.empty_like(whole)
            for k, name in enumerate(lidars):
                points = sample.cloud.source == k
                own[points] = alone[k].process(Sweep(drive.sweep_of(k, number).cloud)).labels
                self.counts[f"{name}, united"].update(whole[points], truth[points])
                self.counts[f"{name}, alone"].update(own[points], truth[points])
            self.counts["all, united"].update(whole, truth)
            self.counts["all, each alone"].update(own, truth)
            self._time(drive, number)

    def _time(self, drive: SimulatedDrive, number: int) -> None:
        clouds = [drive.sweep_of(k, number).cloud for k in range(len(drive.world.lidars))]
        parts = [Part(c, drive.world.T_lidar_other(k), k) for k, c in enumerate(clouds)]
        messages = [_message(cloud) for cloud in clouds]
        stamp, poses = drive.stamp_ns(number), drive.world.trajectory.at_many
        whole = self._timed("unite", lambda: unite(parts, stamp, "lidar"))
        moved = self._timed("deskew", lambda: Sweep(whole, poses=poses).deskewed())
        self._timed("message", lambda: united_message(messages, whole, moved.xyz))
        self._timed("deskew the first alone", lambda: Sweep(clouds[0], poses=poses).deskewed())
        self.points.append(len(whole))

    def _timed(self, stage: str, work: Callable[[], Any]) -> Any:
        started = time.thread_time()
        result = work()
        self.cpu_ms[stage].append(1e3 * (time.thread_time() - started))
        return result

    def figures(self) -> Figures:
        """mIoU and accuracy of each LiDAR and way."""
        return {
            name: {
                "miou": round(float(np.nanmean(count.iou[count.present])), 4),
                "accuracy": round(float(np.trace(count.matrix) / count.points), 4),
                "points": int(count.points),
            }
            for name, count in sorted(self.counts.items())
        }


def _message(cloud: PointCloud) -> Any:
    assert cloud.intensity is not None and cloud.ring is not None and cloud.time is not None
    columns: dict[str, Any] = dict(zip("xyz", cloud.xyz.T))
    columns |= {"intensity": cloud.intensity, "ring": cloud.ring}
    return encode_cloud({**columns, "time": cloud.time.astype(np.float32)})


def main() -> int:
    """Measure all drives and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recordings", nargs="+", help="simulated:...,lidars=3")
    parser.add_argument("--checkpoint", default="bundled")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    keep_freed_memory()
    try:
        comparison = Comparison(Segmenter.load(chosen.checkpoint))
        for source in chosen.recordings:
            drive = open_recording(source)
            if not isinstance(drive, SimulatedDrive) or len(drive.world.lidars) == 1:
                raise InputError(f"{source}: expected a simulated drive with lidars=2 or 3")
            comparison.add(drive)
    except PcsegError as error:
        sys.exit(f"error: {error}")
    cpu = {name: round(float(np.median(times)), 2) for name, times in comparison.cpu_ms.items()}
    report = {
        "figures": comparison.figures(),
        "cpu_ms": cpu,
        "points": int(np.median(comparison.points)),
    }
    for name, values in comparison.figures().items():
        print(name, values)
    print("CPU time of a sweep [ms]:", cpu, "points:", report["points"])
    if chosen.json:
        write_atomic(chosen.json, json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
