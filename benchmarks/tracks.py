# SPDX-License-Identifier: Apache-2.0
"""Tracks against the truth of recordings whose labels have instance ids.

    python -m benchmarks.tracks simulated:seed=100120,sweeps=30,cameras=0,beams=32 ... --json OUT
    python -m benchmarks.tracks semantic-kitti:DIR --json OUT

With the labels of the network, and with exact labels: panoptic quality, LSTQ and id switches as
`pcseg evaluate` counts them, over instances of 50 points or more; the share of things within 30 m,
visible with 20 points or more, that keep one id while they are visible; and the error of the
velocities of moving and of standing things, where the recording knows it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pcseg_core.data import Recording, Sample, open_recording
from pcseg_core.errors import InputError, PcsegError
from pcseg_core.evaluation.panoptic import InstanceMeasure, true_instances
from pcseg_core.files import write_atomic
from pcseg_core.labels import LabelSpace, truth_of
from pcseg_core.metrics.panoptic import Identities
from pcseg_core.online.pipeline import LabeledSweep, Pipeline, Sweep
from pcseg_core.online.pipeline_config import MotionConfig, PipelineConfig, SmoothingConfig
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.online.tracks import Track, Tracker
from pcseg_core.progress import tracked
from pcseg_core.simulation.recording import SimulatedDrive
from pcseg_core.simulation.world import drive_time
from pcseg_ros.process import keep_freed_memory

KINDS = {
    "vehicles": ("car", "truck", "bus", "other-vehicle", "motorcycle"),
    "bicycles": ("bicycle",),
    "people": ("person", "rider", "bicyclist", "motorcyclist"),
}
NEAR_M = 30.0
VISIBLE_POINTS = 20
_SETTLED_S = 0.5  # age of a track from which its velocity is compared
_MOVES_MPS = 0.3


class Way:
    """Tracks the things of one drive by one kind of labels, and measures them."""

    def __init__(self, space: LabelSpace) -> None:
        self.space, self.tracker = space, Tracker()
        self.measure = InstanceMeasure(space, space)
        self.near = {kind: Identities(VISIBLE_POINTS) for kind in KINDS}
        self.errors: dict[str, list[float]] = defaultdict(list)
        self.cpu_ms: list[float] = []

    def add(self, sample: Sample, labeled: LabeledSweep, velocities: dict[int, np.ndarray]) -> None:
        """Add a sweep with its labels; velocities by instance in the fixed frame."""
        assert labeled.pose is not None
        rules, space = self.measure.rules, self.space
        started = time.thread_time()
        found = self.tracker.update(labeled.cloud, labeled.labels, space, labeled.pose, rules)
        self.cpu_ms.append(1e3 * (time.thread_time() - started))
        truth = truth_of(sample, space)
        one = replace(labeled, tracked=found)
        self.measure.add(sample, one, labeled.labels.astype(np.int64), truth)
        for kind, identities in self.near.items():
            true = np.where(_is_kind(sample, kind), true_instances(sample), 0)
            true[~is_near(true, labeled.cloud.xyz)] = 0
            identities.update(sample.scene, found.instances, true)
        if velocities:
            for track in found.tracks:
                self._compare(track, sample, found.instances, labeled.pose, velocities)

    def _compare(
        self,
        track: Track,
        sample: Sample,
        ids: np.ndarray,
        pose: np.ndarray,
        velocities: dict[int, np.ndarray],
    ) -> None:
        assert sample.instances is not None
        owners = sample.instances[ids == track.id]
        if track.age_s < _SETTLED_S or len(owners) < VISIBLE_POINTS:
            return
        owner = int(np.bincount(owners + 1).argmax()) - 1
        if owner >= 0:
            true = velocities.get(owner, np.zeros(3))
            kind = "moving" if np.linalg.norm(true) > _MOVES_MPS else "standing"
            gap = (pose[:3, :3] @ track.velocity - true)[:2]
            self.errors[kind].append(float(np.linalg.norm(gap)))


def is_near(ids: np.ndarray, xyz: np.ndarray) -> np.ndarray:
    """(N,) bool: the mean of the points (N, 3) with the same id is within `NEAR_M`.

    An instance counts as a whole or not at all: a track is compared with all points of it.
    """
    _, numbers = np.unique(ids, return_inverse=True)
    middle = [np.bincount(numbers, xyz[:, axis]) for axis in (0, 1)] / np.bincount(numbers)
    near: np.ndarray = np.hypot(*middle) < NEAR_M
    return near[numbers]


def _is_kind(sample: Sample, kind: str) -> np.ndarray:
    assert sample.labels is not None and sample.label_space is not None
    names = sample.label_space.names
    return np.isin(sample.labels, [k for k, name in enumerate(names) if name in KINDS[kind]])


def true_velocities(recording: Recording, sample: Sample) -> dict[int, np.ndarray]:
    """Velocity of each moving instance; empty if the recording does not know them."""
    if not isinstance(recording, SimulatedDrive):
        return {}
    at = drive_time(sample.stamp_ns)
    movers = recording.world.scene.movers
    return {int(one): mover.at(at)["velocity"][0] for mover in movers for one in mover.ids}


def run(source: str, segmenter: Segmenter) -> dict[str, Way]:
    """Measure a recording."""
    config = PipelineConfig(
        motion=MotionConfig(deskew=True), temporal=SmoothingConfig(enabled=True)
    )
    pipeline, recording = Pipeline(segmenter, config), open_recording(source)
    space = pipeline.label_space
    ways = {"labels of the network": Way(space), "exact labels": Way(space)}
    for sample in tracked(recording, recording.name, len(recording)):
        labeled = pipeline.process(Sweep.of(sample), located=True)
        if labeled.pose is None or sample.instances is None:
            raise InputError(f"{sample.name}: expected a recording with poses and instance ids")
        velocities = true_velocities(recording, sample)
        exact = replace(labeled, labels=truth_of(sample, space).astype(np.int32))
        for way, one in zip(ways.values(), (labeled, exact)):
            way.add(sample, one, velocities)
    return ways


def figures(way: Way) -> dict[str, Any]:
    """All figures of one way on one drive; fractions are 0 to 1."""
    found = way.measure.figures()
    assert found is not None
    kept = {kind: identities.kept() for kind, identities in way.near.items()}
    spread = {
        kind: [round(float(value), 2) for value in np.percentile(errors, (50, 90))]
        for kind, errors in way.errors.items()
    }
    return {
        "pq": {
            name: round(q.pq, 3)
            for name, q in found.classes.items()
            if name in way.measure.rules.classes
        },
        "lstq": found.lstq,
        "s_assoc": found.s_assoc,
        "s_cls": found.s_cls,
        "id_switches": found.id_switches,
        "instances": found.instances,
        "kept_one_id": kept,
        "found": {kind: round(ids.found, 3) for kind, ids in way.near.items()},
        "velocity_error_mps": spread,
        "cpu_ms": round(float(np.median(way.cpu_ms)), 2),
    }


def main() -> int:
    """Measure all recordings and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recordings", nargs="+", help="simulated:... or semantic-kitti:DIR")
    parser.add_argument("--checkpoint", default="bundled")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    keep_freed_memory()
    report: dict[str, dict[str, Any]] = {}
    try:
        segmenter = Segmenter.load(chosen.checkpoint)
        for source in chosen.recordings:
            report[source] = {name: figures(way) for name, way in run(source, segmenter).items()}
    except PcsegError as error:
        sys.exit(f"error: {error}")
    for source, ways in report.items():
        for name, values in ways.items():
            print(source, name, json.dumps(values))
    for name in next(iter(report.values())):
        for kind in KINDS:
            pairs = [ways[name]["kept_one_id"][kind] for ways in report.values()]
            one, every = map(sum, zip(*pairs))
            print(f"{name}: {one} of {every} {kind} within {NEAR_M:g} m keep one id")
    if chosen.json:
        write_atomic(chosen.json, json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
