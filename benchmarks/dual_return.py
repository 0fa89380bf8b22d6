# SPDX-License-Identifier: Apache-2.0
"""Two returns of a beam against one: labels, what moves, and cost.

    python -m benchmarks.dual_return simulated:seed=100040,sweeps=8,cameras=0,returns=2 ...

Each sweep is labeled with both returns, with the strongest and with the first of each beam. `both,
unnamed` is the cloud of a driver without a field that tells returns apart: every point counts as a
last return. Prints points, mIoU, accuracy and what moves (live; IoU, precision, recall) of all
points, and of the stronger and the weaker returns apart; and the CPU time of a sweep.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.moving import counts_of, figures
from pcseg_core.data import Recording, Sample, open_recording
from pcseg_core.errors import InputError, PcsegError
from pcseg_core.files import write_atomic
from pcseg_core.labels import LabelSpace, grouping, regroup
from pcseg_core.metrics import Confusion
from pcseg_core.online.moving import MovingThings
from pcseg_core.online.pipeline import Pipeline, Sweep
from pcseg_core.online.pipeline_config import MotionConfig, PipelineConfig, SmoothingConfig
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.progress import tracked
from pcseg_core.returns import ReturnType
from pcseg_ros.process import keep_freed_memory

VERSIONS = ("both", "strongest", "first", "both, unnamed")
_FIELD = "return_type"
_FIRST = (ReturnType.DUAL_STRONGEST_FIRST, ReturnType.DUAL_WEAK_FIRST, ReturnType.DUAL_ONLY)
_WEAK = (ReturnType.DUAL_WEAK_FIRST, ReturnType.DUAL_WEAK_LAST)


def kinds(sample: Sample) -> np.ndarray:
    """(N,) `ReturnType` of the points.

    Raises:
        InputError: the recording does not tell.
    """
    if _FIELD not in sample.cloud.extra:
        raise InputError(f"{sample.name}: no field {_FIELD}; simulate the drive with returns=2")
    return sample.cloud.extra[_FIELD]


def versions(sample: Sample) -> dict[str, Sample]:
    """A sweep as LiDARs of different modes and drivers give it."""
    kind = kinds(sample)
    fields = {name: sample.cloud.extra[name] for name in sample.cloud.extra if name != _FIELD}
    unnamed = replace(sample, cloud=replace(sample.cloud, extra=fields))
    return {
        "both": sample,
        "strongest": _select(unnamed, ~np.isin(kind, _WEAK)),
        "first": _select(unnamed, np.isin(kind, _FIRST)),
        "both, unnamed": unnamed,
    }


def _select(sample: Sample, chosen: np.ndarray) -> Sample:
    assert sample.labels is not None and sample.moving is not None
    return replace(
        sample,
        cloud=sample.cloud.select(chosen),
        labels=sample.labels[chosen],
        moving=sample.moving[chosen],
    )


class Counts:
    """What was found of some of the points, against the truth.

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int) -> None:
        self.labels, self.moving = Confusion(classes), Counter[str]()

    def figures(self) -> dict[str, object]:
        """Points, mIoU, accuracy, and what moves."""
        labels = self.labels
        return {
            "points": int(labels.points),
            "miou": round(float(np.nanmean(labels.iou[labels.present])), 4),
            "accuracy": round(float(np.trace(labels.matrix) / labels.points), 4),
            "moving": figures(self.moving),
        }


class Version:
    """Labels the sweeps of drives in one version, and finds what moves.

    Args:
        segmenter: the network.
    """

    def __init__(self, segmenter: Segmenter) -> None:
        self._segmenter = segmenter
        self.counts: dict[str, Counts] = {}
        self.cpu_ms: list[float] = []

    def begin(self, space: LabelSpace) -> None:
        """Begin a drive whose truth has these classes."""
        config = PipelineConfig(
            motion=MotionConfig(deskew=True), temporal=SmoothingConfig(enabled=True)
        )
        self._pipeline, self._things = Pipeline(self._segmenter, config), MovingThings()
        self._table, self._begins = grouping(space, self._segmenter.label_space), True

    def add(self, sample: Sample, parts: dict[str, np.ndarray]) -> None:
        """Label a sweep; nothing is known of what moves in the first one."""
        assert sample.labels is not None and sample.moving is not None
        started = time.thread_time()
        labeled = self._pipeline.process(Sweep.of(sample), located=True)
        assert labeled.pose is not None
        found = self._things.update(
            labeled.cloud, labeled.labels, labeled.label_space, labeled.pose
        )
        self.cpu_ms.append(1e3 * (time.thread_time() - started))
        truth = regroup(sample.labels, self._table)
        for name, part in parts.items():
            counts = self.counts.setdefault(name, Counts(len(self._segmenter.label_space)))
            counts.labels.update(labeled.labels[part], truth[part])
            if not self._begins:
                counts.moving += counts_of(found[part], sample.moving[part])
        self._begins = False


def add_drive(recording: Recording, every: dict[str, Version]) -> None:
    """Label a drive in all versions."""
    if recording.label_space is None:
        raise InputError(f"{recording.name}: no labels")
    for version in every.values():
        version.begin(recording.label_space)
    for sample in tracked(recording, recording.name, len(recording)):
        weak = np.isin(kinds(sample), _WEAK)
        for name, changed in versions(sample).items():
            parts = {"all": np.ones(len(changed.cloud), bool)}
            if name.startswith("both"):
                parts |= {"stronger": ~weak, "weaker": weak}
            every[name].add(changed, parts)


def main() -> int:
    """Measure all drives and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recordings", nargs="+", help="simulated:...,returns=2")
    parser.add_argument("--checkpoint", default="bundled")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    keep_freed_memory()
    try:
        segmenter = Segmenter.load(chosen.checkpoint)
        every = {name: Version(segmenter) for name in VERSIONS}
        for source in chosen.recordings:
            add_drive(open_recording(source), every)
    except PcsegError as error:
        sys.exit(f"error: {error}")
    report: dict[str, dict[str, object]] = {}
    for name, version in every.items():
        report[name] = {part: counts.figures() for part, counts in version.counts.items()}
        for part, values in report[name].items():
            print(f"{name}, {part}:", values)
        report[name]["cpu_ms"] = round(float(np.median(version.cpu_ms)), 1)
    print("CPU time of a sweep [ms]:", {name: values["cpu_ms"] for name, values in report.items()})
    if chosen.json:
        write_atomic(chosen.json, json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
