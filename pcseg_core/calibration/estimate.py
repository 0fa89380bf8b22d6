# SPDX-License-Identifier: Apache-2.0
"""The error of a camera's calibration: coarse to fine search, and its uncertainty.

Rotation, translation and time are searched together. Their covariance is that of an M-estimator
(Huber 1967, "sandwich"): it contains the curvature of the score and the scatter of its derivative
between parts of the drive. What the drive cannot tell apart, such as time and forward position at
constant speed, gets wide intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from pcseg_core.calibration.alignment import MAX_TIME_S, Alignment

Float64 = npt.NDArray[np.float64]

GROUPS: dict[str, slice] = {
    "rotation": slice(0, 3),
    "translation": slice(3, 6),
    "time": slice(6, 7),
}
"""Places of the rotation [deg], the translation [m] and the time [s] in a change (7,)."""

_UNIT = np.array([0.3, 0.3, 0.3, 0.05, 0.05, 0.05, 0.02])  # changes of about the same effect
_BOUND = np.array([8.0, 8.0, 8.0, 0.6, 0.6, 0.6, MAX_TIME_S]) / _UNIT
_RIDGE = 2e-4  # loss of score per squared unit: decides where the score is flat
# Usual errors of a calibration, and what the score is off by on exact ones.
_PRIOR = np.array([5.0, 5.0, 5.0, 0.07, 0.07, 0.07, 0.1]) / _UNIT
_FLOOR = np.array([0.05, 0.05, 0.05, 0.04, 0.04, 0.04, 0.002]) / _UNIT
_STATIC_FLOOR = np.array([0.05, 0.05, 0.05, 0.012, 0.012, 0.012, 0.002]) / _UNIT
_ITERATIONS = 30
_RIGHT = 0.98  # share of the best score that a change reaches if places that it lacks are right


@dataclass(frozen=True)
class Estimate:
    """A change of the calibration that improves the score.

    Attributes:
        change: (7,) see `Alignment`.
        covariance: (7, 7) of the change, in its units.
        before, after: score at the finest level without and with the change.
    """

    change: Float64
    covariance: Float64
    before: float
    after: float

    @property
    def intervals(self) -> Float64:
        """(7,) half widths of the 95 % intervals."""
        result: Float64 = 2 * np.sqrt(np.diag(self.covariance))
        return result


def search(
    alignment: Alignment,
    start: Float64 | None = None,
    free: Sequence[int] = range(7),
    levels: Sequence[int] = (0, 1, 2),
) -> Float64:
    """The change (7,) of the best score, from coarse to fine.

    Args:
        alignment: the views of a camera.
        start: change to start from; None for none.
        free: places of the change to search; the others stay.
        levels: levels of the score, in their order.
    """
    free = list(free)
    best = np.zeros(7) if start is None else start / _UNIT
    for level in levels:

        def loss(values: Float64, level: int = level) -> tuple[float, Float64]:
            trial = best.copy()
            trial[free] = values
            scores, slopes = alignment.parts(trial * _UNIT, level)
            pulled = trial * [0, 0, 0, 1, 1, 1, 1]
            slope = -slopes.sum(axis=0) * _UNIT + 2 * _RIDGE * pulled
            return float(_RIDGE * pulled @ pulled - scores.sum()), slope[free]

        found = minimize(
            loss,
            best[free],
            jac=True,
            method="L-BFGS-B",
            bounds=list(zip(-_BOUND[free], _BOUND[free])),
            options={"maxiter": _ITERATIONS, "ftol": 1e-5},
        )
        best[free] = found.x
    change: Float64 = best * _UNIT
    return change


def estimate(alignment: Alignment, change: Float64, free: Sequence[int] = range(7)) -> Estimate:
    """A change of the best score with its covariance, drawn to 0 where the drive cannot tell.

    Args:
        alignment: the views of a camera.
        change: see `search`.
        free: places of the change that were searched; the others are taken as exact.
    """
    free = list(free)
    unit = _UNIT[free]
    slopes = alignment.parts(change, -1)[1][:, free] * unit
    information = _information(slopes, _curvature(alignment, change, free))
    covariance = np.linalg.inv(information + np.diag(_PRIOR[free] ** -2.0))
    likely = change.copy()
    likely[free] = unit * (covariance @ information @ (change[free] / unit))
    whole = np.zeros((7, 7))
    floor = (_STATIC_FLOOR if alignment.static else _FLOOR)[free]
    whole[np.ix_(free, free)] = (covariance + np.diag(floor**2)) * np.outer(unit, unit)
    return _scored(alignment, likely, whole)


def restricted(alignment: Alignment, whole: Estimate, free: Sequence[int]) -> Estimate:
    """The best change of some places, the others being right; with the same covariance.

    Where the score says that the others are not right, the places stay as in the whole change:
    they would make up for the others.
    """
    start = np.zeros(7)
    start[list(free)] = whole.change[list(free)]
    found = search(alignment, start, free, (1, 2)) if free else start
    right = alignment.score(found, -1) > _RIGHT * whole.after
    return _scored(alignment, found if right else start, whole.covariance)


def spread(alignments: Sequence[Alignment], change: Float64) -> Float64:
    """(7,) largest distance between the changes that parts of a drive find by themselves."""
    found = [search(part, change, levels=(1, 2)) for part in alignments]
    widest: Float64 = np.ptp(np.stack(found), axis=0)
    return widest


def _scored(alignment: Alignment, change: Float64, covariance: Float64) -> Estimate:
    before = alignment.score(np.zeros(7), -1)
    return Estimate(change, covariance, before, alignment.score(change, -1))


def _curvature(alignment: Alignment, change: Float64, free: Sequence[int]) -> Float64:
    """(K, K) second derivative of the score, over steps as wide as its finest peak."""
    rows = []
    for k in free:
        step = np.zeros(7)
        step[k] = 0.3 * _UNIT[k]
        up, down = (alignment.parts(change + sign * step, -1)[1].sum(axis=0) for sign in (1, -1))
        rows.append(((up - down) * _UNIT / 0.6)[list(free)])
    matrix = np.stack(rows)
    result: Float64 = (matrix + matrix.T) / 2
    return result


def _information(slopes: Float64, curvature: Float64) -> Float64:
    """(K, K) inverse covariance from the slopes (V, K) of views; neighbors are not independent."""
    pairs = np.add.reduceat(slopes, np.arange(0, len(slopes), 2), axis=0)
    pairs = pairs - pairs.mean(axis=0)
    scatter = pairs.T @ pairs * len(pairs) / max(len(pairs) - 1, 1)
    places = len(scatter)
    scatter += np.eye(places) * (1e-2 * np.trace(scatter) / places + 1e-12)
    values, vectors = np.linalg.eigh(-curvature)
    peaked = vectors @ np.diag(np.maximum(values, 0.0)) @ vectors.T
    result: Float64 = peaked @ np.linalg.inv(scatter) @ peaked
    return result
