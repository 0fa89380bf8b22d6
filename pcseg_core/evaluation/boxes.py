# SPDX-License-Identifier: Apache-2.0
"""Measure vehicle and person points against 3D boxes, where there are no labels per point."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pcseg_core.errors import InputError
from pcseg_core.evaluation.evaluator import Progress
from pcseg_core.evaluation.report import BoxFigures, BoxReport
from pcseg_core.geometry import transform
from pcseg_core.labels import LabelSpace, grouping, regroup
from pcseg_core.online.pipeline import Pipeline, Sweep

if TYPE_CHECKING:
    from pcseg_core.data import Box, Recording, Sample

Mask = npt.NDArray[np.bool_]

# Classes of the street space by the words that data sets use for boxes. A rider on a bicycle is
# a person on a vehicle: both classes count as right, and such boxes are not counted.
_CLASSES = {
    "vehicle": ("car", "van", "truck", "tram", "bus", "trailer", "vehicle"),
    "person": ("pedestrian", "person", "person_sitting"),
    "either": ("cyclist", "bicycle", "motorcycle", "rider", "bicyclist", "motorcyclist"),
}
MEASURED = ("vehicle", "person")
# Boxes are annotated by hand: their lowest points are often road, and objects stick out a little.
CORE_LIFT_M = 0.2
MARGIN_M = 0.2
_MIN_POINTS = 5  # a box with fewer points is not counted as found or missed


def box_class(label: str) -> str | None:
    """ "vehicle", "person", "either" or None for the class name of a box, in any data set's words.

    Names in parts, such as nuScenes "vehicle.bus.rigid", are matched by their last known part.
    """
    parts = label.lower().replace("-", "_").split(".")
    for part in reversed(parts):
        for name, words in _CLASSES.items():
            if part in words:
                return name
    return None


def grown(box: Box, margin_m: float, lift_m: float = 0.0) -> Box:
    """The box with its faces moved outward by a margin and its bottom raised by `lift_m`."""
    lift = np.array([0.0, 0.0, lift_m])
    size = np.asarray(box.size, np.float64) + 2 * margin_m - lift
    center = np.asarray(box.center, np.float64) + lift / 2
    return dataclasses.replace(box, center=center, size=np.maximum(size, 0))


def union(boxes: Sequence[Box], xyz: npt.NDArray[np.float32], margin_m: float = 0.0) -> Mask:
    """(N,) bool: points (N, 3) inside any of the boxes."""
    mask = np.zeros(len(xyz), bool)
    for box in boxes:
        mask |= grown(box, margin_m).contains(xyz)
    return mask


@dataclass
class _Tally:
    boxes: int = 0
    found: int = 0
    judged: int = 0
    points: int = 0
    hits: int = 0
    predicted: int = 0
    inside: int = 0

    def figures(self) -> BoxFigures:
        return BoxFigures(
            boxes=self.boxes,
            points=self.points,
            recall=_share(self.hits, self.points),
            inside=_share(self.inside, self.predicted),
            found=_share(self.found, self.judged),
        )


def evaluate_boxes(
    pipeline: Pipeline, recording: Recording, *, progress: Progress | None = None
) -> BoxReport:
    """Recall and share inside of predicted vehicle and person points against 3D boxes.

    Recall counts the points in the core of a box: all but its lowest 0.2 m, which are often road.
    The share inside counts predicted points within 0.2 m of a box, in the annotated region: the
    view of the cameras if the samples have cameras, else everything.

    Raises:
        InputError: no sample has boxes, or the label space does not group into "street".
    """
    street = LabelSpace.load("street")
    table = grouping(pipeline.label_space, street)
    names = list(street.names)
    tallies = {name: _Tally() for name in MEASURED}
    scans = 0
    pipeline.match_intensities(recording)
    for index in range(len(recording)):
        sample = recording[index]
        if sample.boxes is not None:
            scans += 1
            pred = regroup(pipeline.process(Sweep.of(sample)).labels, table)
            for name, tally in tallies.items():
                _count(tally, name, sample, pred == names.index(name))
        if progress:
            progress(index + 1, len(recording))
    if not scans:
        raise InputError(f"{recording.name}: no sample has 3D boxes")
    classes = {name: tally.figures() for name, tally in tallies.items()}
    return BoxReport(source=recording.name, scans=scans, classes=classes)


def _count(tally: _Tally, name: str, sample: Sample, predicted: Mask) -> None:
    xyz = sample.cloud.xyz
    own = [box for box in sample.boxes or () if box_class(box.label) == name]
    riders = [box for box in sample.boxes or () if box_class(box.label) == "either"]
    core = np.zeros(len(xyz), bool)
    for box in own:
        inside = grown(box, 0.0, CORE_LIFT_M).contains(xyz)
        core |= inside
        if inside.sum() >= _MIN_POINTS:
            tally.judged += 1
            tally.found += int(predicted[inside].mean() > 0.5)
    tally.boxes += len(own)
    tally.points += int(core.sum())
    tally.hits += int((core & predicted).sum())
    fair = annotated_region(sample) & ~union(riders, xyz, MARGIN_M)
    tally.predicted += int((fair & predicted).sum())
    tally.inside += int((fair & predicted & union(own, xyz, MARGIN_M)).sum())


def annotated_region(sample: Sample) -> Mask:
    """(N,) bool: points that project into some camera's image; all points without cameras."""
    xyz = sample.cloud.xyz
    if not sample.cameras:
        return np.ones(len(xyz), bool)
    seen = np.zeros(len(xyz), bool)
    for index, frame in enumerate(sample.cameras):
        uv, valid = frame.camera.project(transform(sample.T_cam_lidar(index), xyz))
        seen |= valid & frame.camera.contains(uv)
    return seen


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
