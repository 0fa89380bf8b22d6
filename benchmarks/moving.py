# SPDX-License-Identifier: Apache-2.0
"""What moves, against the truth of recordings that have it.

    python -m benchmarks.moving simulated:seed=100020,sweeps=20,cameras=0,beams=32 ... --json OUT
    python -m benchmarks.moving semantic-kitti:DIR --json OUT
    python -m benchmarks.moving simulated:seed=100030,sweeps=60,cameras=0,speed_mps=3 --odometry

IoU, precision and recall of moving points with the labels of the network and its own instances:
from earlier sweeps alone (live), and from sweeps before and after (as in files). The first sweep
of a drive is left out: nothing can be known there. Points without a truth are left out. With
`--odometry` kiss-icp estimates the poses from all points, and from the points of `static_points`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pcseg_core.cloud import PointCloud
from pcseg_core.data import Recording, Sample, open_recording
from pcseg_core.data.odometry import estimate_trajectory
from pcseg_core.errors import InputError, PcsegError
from pcseg_core.files import write_atomic
from pcseg_core.labels import MOVING, STATIC, UNKNOWN
from pcseg_core.online.moving import MovingThings, Placed, with_moving
from pcseg_core.online.pipeline import Pipeline, Sweep
from pcseg_core.online.pipeline_config import MotionConfig, PipelineConfig, SmoothingConfig
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.progress import tracked
from pcseg_ros.process import keep_freed_memory


def counts_of(found: np.ndarray, truth: np.ndarray) -> Counter[str]:
    """Points that move in both, in what was found alone, and in the truth alone."""
    known = truth != UNKNOWN
    one, two = (found == MOVING) & known, truth == MOVING
    pairs = {"both": one & two, "wrong": one & ~two, "missed": two & ~one}
    return Counter({name: int(chosen.sum()) for name, chosen in pairs.items()})


def figures(counts: Counter[str]) -> dict[str, float]:
    """IoU, precision and recall from the counts of all sweeps."""
    both = counts["both"]
    found, true = both + counts["wrong"], both + counts["missed"]
    return {
        "iou": round(both / max(found + counts["missed"], 1), 4),
        "precision": round(both / max(found, 1), 4),
        "recall": round(both / max(true, 1), 4),
        "points": true,
    }


class Drive:
    """Labels the sweeps of a recording, finds what moves live, and times it.

    Args:
        recording: with truth and poses.
        pipeline: labels the sweeps.
    """

    def __init__(self, recording: Recording, pipeline: Pipeline) -> None:
        self.recording, self.pipeline = recording, pipeline
        self.live: Counter[str] = Counter()
        self.cpu_ms: list[float] = []
        self.clouds: dict[str, list[PointCloud]] = {"all points": [], "static points": []}
        self.clouds["static by truth"] = []

    def sweeps(self) -> Iterator[tuple[tuple[int, Sample], Placed]]:
        """The labeled sweeps, which are counted for the live figures."""
        things = MovingThings()
        for index, sample in tracked(
            enumerate(self.recording), self.recording.name, len(self.recording)
        ):
            if sample.moving is None:
                raise InputError(f"{sample.name}: the recording does not tell what moves")
            labeled = self.pipeline.process(Sweep.of(sample), located=True)
            placed = Placed(
                labeled.cloud, labeled.labels, labeled.label_space, labeled.pose, sample.scene
            )
            if placed.pose is None:
                raise InputError(f"{sample.name}: no pose")
            started = time.thread_time()
            found = things.update(placed.cloud, placed.labels, placed.space, placed.pose)
            self.cpu_ms.append(1e3 * (time.thread_time() - started))
            if index:
                self.live += counts_of(found, sample.moving)
            self._keep(sample.cloud, found == STATIC, sample.moving == STATIC)
            yield (index, sample), placed

    def _keep(self, cloud: PointCloud, *parts: np.ndarray) -> None:
        every = np.ones(len(cloud), bool)
        for clouds, chosen in zip(self.clouds.values(), (every, *parts)):
            clouds.append(cloud.select(chosen))

    def drift(self) -> dict[str, float]:
        """Error of the positions of kiss-icp by the points that it has, RMS [m]."""
        exact = self.recording[0].trajectory
        assert exact is not None
        errors = {}
        for name, clouds in self.clouds.items():
            found = estimate_trajectory(clouds, max_range_m=100.0)
            true = exact.at_many(found.stamps_ns)
            gap = (true[0] @ found.poses)[:, :3, 3] - true[:, :3, 3]
            errors[name] = round(float(np.sqrt((gap**2).sum(1).mean())), 3)
        return errors

    def both_ways(self) -> Counter[str]:
        """Counts from sweeps before and after; also fills the live ones."""
        total: Counter[str] = Counter()
        for (index, sample), found in with_moving(self.sweeps()):
            assert sample.moving is not None
            if index:
                total += counts_of(found, sample.moving)
        return total


def main() -> int:
    """Measure all recordings and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recordings", nargs="+", help="simulated:... or semantic-kitti:DIR")
    parser.add_argument("--checkpoint", default="bundled")
    parser.add_argument("--odometry", action="store_true", help="also the drift of kiss-icp")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    keep_freed_memory()
    rows: dict[str, dict[str, Counter[str]]] = defaultdict(dict)
    times: dict[str, float] = {}
    drifts: dict[str, dict[str, float]] = {}
    config = PipelineConfig(
        motion=MotionConfig(deskew=True), temporal=SmoothingConfig(enabled=True)
    )
    try:
        segmenter = Segmenter.load(chosen.checkpoint)
        for source in chosen.recordings:
            drive = Drive(open_recording(source), Pipeline(segmenter, config))
            rows[source]["before and after"] = drive.both_ways()
            rows[source]["live"] = drive.live
            if chosen.odometry:
                drifts[source] = drive.drift()
            times[source] = round(float(np.median(drive.cpu_ms)), 2)
    except PcsegError as error:
        sys.exit(f"error: {error}")
    every = list(rows.values())
    for way in ("live", "before and after"):
        rows["all"][way] = sum((row[way] for row in every), Counter[str]())
    report = {n: {way: figures(c) for way, c in row.items()} for n, row in rows.items()}
    for name, ways in report.items():
        for way, values in sorted(ways.items(), reverse=True):
            print(name, way, values)
    print("CPU time of a sweep [ms]:", times)
    for name, errors in drifts.items():
        print(name, "error of kiss-icp [m]:", errors)
    if chosen.json:
        write_atomic(
            chosen.json,
            json.dumps({"figures": report, "cpu_ms": times, "drift_m": drifts}, indent=1),
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
