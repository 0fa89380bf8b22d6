# SPDX-License-Identifier: Apache-2.0
"""Generalized zero-shot figures: seen and unseen classes compete, and count alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from pcseg_core.errors import InputError
from pcseg_core.metrics.confusion import Confusion

Bool = npt.NDArray[np.bool_]


class ZeroShotFigures(BaseModel):
    """Fractions in 0..1; None where no class of the kind occurs in the truth.

    `seen` and `unseen` are mean IoUs over the classes of each kind that occur in the truth, all
    predicted by one classifier; `hiou` is their harmonic mean 2 S U / (S + U).
    """

    model_config = ConfigDict(extra="forbid")

    seen: float | None
    unseen: float | None
    hiou: float | None
    miou: float | None
    iou: dict[str, float | None]

    @classmethod
    def of(
        cls, confusion: Confusion, names: Sequence[str], unseen: npt.ArrayLike
    ) -> ZeroShotFigures:
        """Figures of a confusion over classes of these names.

        Args:
            confusion: over all classes.
            names: (C,) class names.
            unseen: (C,) bool, which classes were never labeled.
        """
        mask = np.asarray(unseen, bool)
        seen_miou = _mean(confusion, ~mask)
        unseen_miou = _mean(confusion, mask)
        return cls(
            seen=seen_miou,
            unseen=unseen_miou,
            hiou=harmonic_mean(seen_miou, unseen_miou),
            miou=_mean(confusion, np.ones(len(mask), bool)),
            iou={n: None if np.isnan(v) else float(v) for n, v in zip(names, confusion.iou)},
        )


def harmonic_mean(a: float | None, b: float | None) -> float | None:
    """2 a b / (a + b); 0 if both are 0, None if one is missing."""
    if a is None or b is None:
        return None
    return 2 * a * b / (a + b) if a + b > 0 else 0.0


def _mean(confusion: Confusion, mask: Bool) -> float | None:
    chosen = confusion.iou[mask & confusion.present]
    return float(chosen.mean()) if len(chosen) else None


def stacked(scores: npt.NDArray[np.floating], unseen: Bool, gamma: float) -> npt.NDArray[np.int64]:
    """Calibrated stacking: the best class after gamma is taken off the scores of seen ones.

    Chao et al., "An Empirical Study and Analysis of Generalized Zero-Shot Learning", ECCV 2016,
    equation 4.

    Args:
        scores: (N, C).
        unseen: (C,) bool.
        gamma: in the unit of the scores.

    Returns:
        (N,) class ids.
    """
    result: npt.NDArray[np.int64] = np.argmax(scores - gamma * ~unseen, axis=1)
    return result


def choose_gamma(
    scores: npt.NDArray[np.floating],
    truth: npt.NDArray[np.integer],
    unseen: Bool,
    grid: Sequence[float],
    tolerance: float,
) -> float:
    """The largest gamma that costs the seen classes at most `tolerance` of their mean IoU.

    Only points of seen classes are looked at, so that nothing of the unseen ones is used: what
    gamma wins there cannot be known, only what it costs here.

    Args:
        scores: (N, C) of held-out points.
        truth: (N,) true classes; points of unseen classes and negative ones are left out.
        unseen: (C,) bool.
        grid: values to try, ascending; the first is the one to fall back on.
        tolerance: absolute loss of mean IoU against the first value, in 0..1.

    Raises:
        InputError: no point of a seen class.
    """
    known = truth >= 0
    known[known] &= ~unseen[truth[known]]
    if not known.any():
        raise InputError("calibrated stacking: no held-out point of a seen class")
    scores, truth = scores[known], truth[known]
    reference, chosen = None, grid[0]
    for gamma in grid:
        confusion = Confusion(scores.shape[1])
        confusion.update(stacked(scores, unseen, gamma), truth)
        found = confusion.miou
        reference = found if reference is None else reference
        if found < reference - tolerance:
            break
        chosen = gamma
    return float(chosen)
