# SPDX-License-Identifier: Apache-2.0
"""Calibration of the confidence at the end of a training, on sweeps that were not trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.confidence import ConfidenceScaling, LabeledLogits, fit_scaling
from pcseg_core.data import evenly_spaced
from pcseg_core.labels import IGNORE
from pcseg_core.learning.dataset import TrainingSweep
from pcseg_core.learning.probe import by_point, run_student
from pcseg_core.learning.shards import scenes_of
from pcseg_core.models.student import Student
from pcseg_core.progress import note

Array = npt.NDArray[Any]

_SWEEPS, _POINTS = 20, 2000  # that a fit takes at most, and points of each
_FEWEST_SWEEPS, _FEWEST_POINTS = 5, 1000  # to hold out, and to fit


def held_out(sweeps: Sequence[TrainingSweep], share: float) -> npt.NDArray[np.bool_]:
    """(N,) bool: sweeps to hold out of a training; none if the share is fewer than 5 sweeps.

    Whole scenes, evenly spaced, where the share is at least one scene; else the end of the longest
    scene, since neighboring sweeps show the same objects.
    """
    scenes = scenes_of(sweeps)
    counts = Counter(scenes)
    count = round(share * len(sweeps))
    if count < _FEWEST_SWEEPS:
        return np.zeros(len(sweeps), bool)
    if whole := int(share * len(counts)):
        names = list(counts)
        chosen = [names[i] for i in np.linspace(0, len(names), whole, False).astype(int)]
        return np.isin(scenes, chosen)
    longest = counts.most_common(1)[0][0]
    members = [i for i, scene in enumerate(scenes) if scene == longest]
    return np.isin(np.arange(len(sweeps)), members[-min(count, len(members) // 2) :])


def calibrate(
    student: Student, sweeps: Sequence[TrainingSweep], held: npt.NDArray[np.bool_]
) -> ConfidenceScaling | None:
    """Fit the confidence of a student to the labels of held-out sweeps.

    Without any, to evenly spaced training sweeps. The student agrees with their labels more than
    with others, so that they can lower its confidence but not raise it.

    Args:
        student: the trained network.
        sweeps: of the training and held out, with labels.
        held: (N,) which of them were held out.

    Returns:
        None with fewer than 1000 labeled points, or if nothing changes.
    """
    apart = bool(held.any())
    usable = np.flatnonzero(held | (not apart))
    chosen = (sweeps[int(usable[i])] for i in evenly_spaced(len(usable), _SWEEPS))
    rng = np.random.default_rng(0)
    parts = [part for sweep in chosen if (part := _sample(student, sweep, rng)) is not None]
    if sum(len(part[0]) for part in parts) < _FEWEST_POINTS:
        return None
    points = LabeledLogits(*(np.concatenate(column) for column in zip(*parts)))
    range_m = student.config.max_range_m
    found = fit_scaling(points, range_m) if apart else fit_scaling(points, range_m, least=1.0)
    if found.near == found.far == found.unsure == 1:
        return None
    kind = "held-out" if apart else "training"
    note(f"confidence calibrated on {len(parts)} {kind} sweeps")
    return found.model_copy(update={"sweeps": len(parts), "held_out": apart})


def _sample(
    student: Student, sweep: TrainingSweep, rng: np.random.Generator
) -> tuple[Array, Array, Array] | None:
    """Logits, ranges and labels of some labeled points; None without any."""
    labeled = np.flatnonzero(sweep.label != IGNORE)
    if not len(labeled):
        return None
    kept = rng.permutation(labeled)[:_POINTS]
    output = run_student(student.eval(), np.array(sweep.xyz), np.array(sweep.intensity))
    logits = by_point(output.logits, output)[kept]
    ranges = np.linalg.norm(sweep.xyz[kept], axis=1)
    return logits, ranges, sweep.label[kept].astype(np.int64)
