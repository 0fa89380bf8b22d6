# SPDX-License-Identifier: Apache-2.0
"""Corruption error and resilience rate, and how well a score ranks errors.

Kong et al., "Robo3D: Towards Robust and Reliable 3D Perception against Corruptions", ICCV 2023.
All figures are fractions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from pcseg_core.errors import InputError

Mious = Mapping[str, Sequence[float]]
"""Corruption -> mIoU at each severity, in 0..1."""


def corruption_errors(mious: Mious, baseline: Mious) -> dict[str, float]:
    """CE of each corruption: sum of (1 - mIoU) over the severities, relative to a baseline.

    Corruptions in which the baseline makes no error are left out. mCE is the mean of the values.

    Raises:
        InputError: the baseline lacks a corruption, or has another number of severities.
    """
    errors = {}
    for name, values in mious.items():
        if name not in baseline or len(baseline[name]) != len(values):
            count = f"{len(baseline[name])} severities" if name in baseline else "no figures"
            raise InputError(f"baseline: {count} of {name}; expected {len(values)} severities")
        wrong = sum(1 - value for value in baseline[name])
        if wrong > 0:
            errors[name] = sum(1 - value for value in values) / wrong
    return errors


def resilience_rates(mious: Mious, clean: float) -> dict[str, float]:
    """RR of each corruption: mean mIoU over the severities, relative to the clean one.

    Empty for a clean mIoU of 0. mRR is the mean of the values.
    """
    if clean <= 0:
        return {}
    return {name: float(np.mean(values)) / clean for name, values in mious.items()}


def mean_of(values: Mapping[str, float]) -> float | None:
    """Mean over the corruptions; None without any."""
    return float(np.mean(list(values.values()))) if values else None


class ErrorRanking:
    """Area under the ROC curve of a score for errors: wrong points should score higher.

    The area is the probability that a wrong point scores higher than a right one, ties count one
    half (Mann-Whitney U). It is exact for scores rounded down to `levels` steps.
    """

    def __init__(self, levels: int = 1 << 14) -> None:
        self.counts = np.zeros((2, levels), np.int64)  # right, wrong

    def update(self, scores: npt.NDArray[np.floating], wrong: npt.NDArray[np.bool_]) -> None:
        """Add points: scores (N,) in 0..1, and whether each prediction is wrong (N,)."""
        levels = self.counts.shape[1]
        level = np.clip((scores * levels).astype(np.int64), 0, levels - 1)
        for row, members in enumerate((level[~wrong], level[wrong])):
            self.counts[row] += np.bincount(members, minlength=levels)

    @property
    def area(self) -> float | None:
        """In 0..1, 0.5 for a score that tells nothing; None without right or without wrong."""
        right, wrong = self.counts
        if not (right.any() and wrong.any()):
            return None
        below = np.cumsum(right) - right
        pairs = float((wrong * (below + right / 2)).sum())
        return pairs / (float(right.sum()) * float(wrong.sum()))


def normalized_entropy(probabilities: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """(N,) entropy of rows of probabilities (N, C), over that of equal ones: 0 to 1."""
    values = np.asarray(probabilities, np.float64)
    terms = np.where(values > 0, values * np.log(np.maximum(values, 1e-30)), 0.0)
    entropy: npt.NDArray[np.float64] = -terms.sum(1) / np.log(max(values.shape[1], 2))
    return np.clip(entropy, 0, 1)
