# SPDX-License-Identifier: Apache-2.0
"""Which sweeps are worth correcting: where networks doubt and disagree, each unlike the others.

Four reasons are measured for each sweep: the teacher disagrees with the student, the student with
itself in the sweep before, its classes have a high entropy, and its features differ from those of
sweeps that are chosen already.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pcseg_core.confidence import entropy
from pcseg_core.data import Recording, Sample, readable
from pcseg_core.distill.evidence import places_of, world_keys
from pcseg_core.distill.observation import ClassEvidence
from pcseg_core.distill.pseudo_labels import label_points
from pcseg_core.errors import InputError
from pcseg_core.labels import IGNORE
from pcseg_core.learning.probe import by_point, run_student
from pcseg_core.models.student import Student

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

VOXEL_M = 0.5  # places that two sweeps share
_FEWEST = 100  # points that two networks, or two sweeps, must both label
_PAIRS = 400  # sweeps whose distances give the scale of features


@dataclass(frozen=True)
class Opinion:
    """What networks say of a sweep. Points are those within the student's range.

    Attributes:
        xyz: (N, 3) float32 [m].
        pose: (4, 4) T_world_lidar, or None.
        label: (N,) class ids of the student.
        entropy: (N,) of its classes, 0 to 1.
        teacher: (N,) class ids of the teacher, IGNORE for none; None without a teacher.
        descriptor: (D,) mean and deviation of the features of the student over the sweep.
    """

    xyz: Array
    pose: Float64 | None
    label: Array
    entropy: Array
    teacher: Array | None
    descriptor: Float64

    @property
    def teacher_differs(self) -> tuple[Bool, Bool]:
        """(N,) points where teacher and student differ, and those that both label."""
        if self.teacher is None:
            none = np.zeros(len(self.label), bool)
            return none, none
        both = self.teacher != IGNORE
        return both & (self.teacher != self.label), both

    def time_differs(self, before: Opinion | None) -> tuple[Bool, Bool]:
        """(N,) points in a voxel that the sweep before labels differently, and those in any."""
        none = np.zeros(len(self.label), bool)
        if before is None or self.pose is None or before.pose is None:
            return none, none
        start = np.eye(4)
        start[:3, 3] = -np.floor(before.pose[:3, 3] / VOXEL_M) * VOXEL_M
        keys = world_keys(before.xyz, start @ before.pose, VOXEL_M)
        voxels, place = np.unique(keys, return_inverse=True)
        votes = np.zeros((len(voxels), int(before.label.max()) + 1), np.int32)
        np.add.at(votes, (place, before.label), 1)
        own = world_keys(self.xyz, start @ self.pose, VOXEL_M)
        at, both = places_of(own, voxels)
        both &= own >= 0
        return both & (votes.argmax(axis=1)[at] != self.label), both


class Analyst:
    """Gives opinions on sweeps.

    Args:
        student: trained network.
        teacher: classes of points by images, in the label space of the student; None for none.
        max_range_m: points beyond are left out [m].
    """

    def __init__(self, student: Student, teacher: ClassEvidence | None, max_range_m: float) -> None:
        self.student, self.teacher, self.max_range_m = student.eval(), teacher, max_range_m

    def __call__(self, sample: Sample) -> Opinion:
        """The opinion on a sweep.

        Raises:
            InputError: no point within range, or images that cannot be read.
        """
        cloud = sample.cloud
        near = cloud.finite & (np.linalg.norm(cloud.xyz, axis=1) <= self.max_range_m)
        if not near.any():
            raise InputError(f"{sample.name}: no point within {self.max_range_m:g} m")
        xyz = np.ascontiguousarray(cloud.xyz[near], np.float32)
        intensity = np.zeros(len(cloud)) if cloud.intensity is None else cloud.intensity
        output = run_student(self.student, xyz, np.nan_to_num(intensity[near]))
        likely = output.logits.float().softmax(1)
        features = output.features.float()
        found = torch.cat([features.mean(0), features.std(0)]).cpu().numpy().astype(np.float64)
        teacher = None
        if self.teacher is not None:
            teacher, _ = label_points(self.teacher.evidence(sample, xyz), len(xyz))
        return Opinion(
            xyz,
            sample.T_world_lidar,
            by_point(likely.argmax(1), output),
            by_point(entropy(likely), output),
            teacher,
            found,
        )


@dataclass(frozen=True)
class Candidate:
    """A sweep and what speaks for correcting it.

    Attributes:
        source: key of its recording.
        index: place in the recording.
        before: place of the sweep that it was compared with; None for none.
        scene, sweep: names.
        reasons: "teacher", "time" and "entropy", 0 to 1; those that are not known are absent.
        descriptor: (D,) see `Opinion`.
        score: mean rank of its reasons among all candidates, 0 to 1.
        novelty: distance of its features to those of the sweeps chosen before, 0 to 1.
    """

    source: str
    index: int
    before: int | None
    scene: str
    sweep: str
    reasons: Mapping[str, float]
    descriptor: Float64
    score: float = 0.0
    novelty: float = 1.0


@dataclass
class Candidates:
    """Candidates of recordings.

    Attributes:
        found: in the order of the recordings.
        skipped: reason -> number of sweeps left out.
    """

    found: list[Candidate] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def candidates(
    analyst: Analyst,
    recordings: Mapping[str, Recording],
    every: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Candidates:
    """Every k-th sweep of recordings, with what speaks for correcting it.

    Args:
        analyst: gives opinions.
        recordings: by any key.
        every: k.
        progress: called with (sweeps done, sweeps in all).

    Raises:
        InputError: no sweep can be used.
    """
    result = Candidates()
    total, done = sum(len(range(0, len(r), every)) for r in recordings.values()), 0
    for source, recording in recordings.items():
        before: tuple[str, int, Opinion] | None = None
        counted = Counter(recording.skipped)
        for index, sample in readable(recording, range(0, len(recording), every)):
            done += 1
            try:
                opinion = analyst(sample)
            except InputError as error:
                result.skipped[str(error)] += 1
                continue
            last = before if before is not None and before[0] == sample.scene else None
            found = _candidate(source, index, sample, opinion, last)
            result.found.append(found)
            before = (sample.scene, index, opinion)
            if progress:
                progress(done, total)
        result.skipped.update(Counter(recording.skipped) - counted)
    if not result.found:
        reasons = "; ".join(result.skipped) or "the recordings have no sweep"
        raise InputError(f"no sweep to choose from: {reasons}")
    return result


def _candidate(
    source: str, index: int, sample: Sample, opinion: Opinion, last: tuple[str, int, Opinion] | None
) -> Candidate:
    reasons = {"entropy": float(opinion.entropy.mean())}
    before = None if last is None else last[2]
    for name, (differs, both) in (
        ("teacher", opinion.teacher_differs),
        ("time", opinion.time_differs(before)),
    ):
        if both.sum() >= _FEWEST:
            reasons[name] = float(differs.sum() / both.sum())
    compared = None if last is None else last[1]
    return Candidate(
        source, index, compared, sample.scene, sample.name, reasons, opinion.descriptor
    )


def select(found: Sequence[Candidate], budget: int) -> list[Candidate]:
    """The sweeps to correct, the most useful first.

    One after the other is chosen by its score times the distance of its features to those of the
    sweeps chosen before. Recordings get equal numbers, as far as they have as many sweeps.

    Args:
        found: candidates.
        budget: number of sweeps; all if there are fewer.
    """
    scores = _ranks(found)
    features = _scaled(np.stack([one.descriptor for one in found]))
    sources = np.array([one.source for one in found])
    left = dict.fromkeys(sources.tolist(), _most(sources, budget))
    nearest = np.full(len(found), 1.0)
    open_ = np.ones(len(found), bool)
    chosen: list[Candidate] = []
    for _ in range(min(budget, len(found))):
        gains = np.where(open_, scores * nearest, -1.0)
        best = int(gains.argmax())
        novelty = float(nearest[best])
        chosen.append(replace(found[best], score=float(scores[best]), novelty=novelty))
        nearest = np.minimum(nearest, np.linalg.norm(features - features[best], axis=1))
        open_[best] = False
        left[found[best].source] -= 1
        if left[found[best].source] == 0:
            open_ &= sources != found[best].source
    return chosen


def _most(sources: npt.NDArray[np.str_], budget: int) -> int:
    """Sweeps that one recording may give, so that the budget is spread and used."""
    sizes = np.unique(sources, return_counts=True)[1]
    level = 1
    while np.minimum(sizes, level).sum() < min(budget, len(sources)):
        level += 1
    return level


def _ranks(found: Sequence[Candidate]) -> Float64:
    """(K,) mean rank of the known reasons of each candidate, above 0 and at most 1."""
    names = sorted({name for one in found for name in one.reasons})
    table = np.array([[one.reasons.get(name, np.nan) for name in names] for one in found])
    ranks = np.full(table.shape, np.nan)
    for column, values in zip(ranks.T, table.T):
        known = np.isfinite(values)
        order = np.unique(values[known], return_inverse=True)[1]
        column[known] = (order + 1) / (order.max() + 1)
    mean: Float64 = np.nanmean(ranks, axis=1)
    return mean


def _scaled(features: Float64) -> Float64:
    """Descriptors (K, D), standardized, so that the median distance of two sweeps is 1."""
    deviation = features.std(axis=0)
    scaled = (features - features.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    some = scaled[np.linspace(0, len(scaled) - 1, min(len(scaled), _PAIRS)).astype(int)]
    distances = np.linalg.norm(some[:, None] - some[None], axis=2)
    median = np.median(distances[distances > 0]) if (distances > 0).any() else 1.0
    result: Float64 = scaled / median
    return result


def opinions(
    analyst: Analyst, recordings: Mapping[str, Recording], chosen: Sequence[Candidate]
) -> Iterator[tuple[Candidate, Sample, Opinion, Opinion | None]]:
    """The chosen sweeps again, with their opinions and those of the sweeps before."""
    for one in chosen:
        recording = recordings[one.source]
        sample = recording[one.index]
        before = None if one.before is None else analyst(recording[one.before])
        yield one, sample, analyst(sample), before
