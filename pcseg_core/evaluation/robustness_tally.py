# SPDX-License-Identifier: Apache-2.0
"""Counts of one method under one corruption."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pcseg_core.corruptions import Corrupted
from pcseg_core.evaluation.robustness_report import ConditionFigures
from pcseg_core.labels import LabelSpace
from pcseg_core.metrics.confusion import Calibration, Confusion
from pcseg_core.metrics.figures import Figures, merge_of
from pcseg_core.metrics.robustness import ErrorRanking

Array: TypeAlias = npt.NDArray[Any]
Labels = npt.NDArray[np.int64]


class ConditionTally:
    """Counts of one method under one condition.

    Args:
        classes: number of classes.
        graded: the reference is ground truth, so that confidences can be measured.
    """

    def __init__(self, classes: int, graded: bool) -> None:
        self.confusion = Confusion(classes)
        self.calibration = Calibration() if graded else None
        self.ranking = ErrorRanking()
        self.same = self.compared = self.clean_points = self.points = self.invented = 0

    def add(
        self, pred: Labels, truth: Labels, clean: Labels, confidence: Array, entropy: Array
    ) -> None:
        """Add the points (N,) of a sweep; `entropy` may be empty."""
        self.confusion.update(pred, truth)
        both = (truth >= 0) & (pred >= 0)
        if self.calibration is not None:
            self.calibration.update(confidence[both], (pred == truth)[both])
        if len(entropy):
            self.ranking.update(entropy[both], (pred != truth)[both])
        known = clean >= 0
        self.compared += int(np.count_nonzero(known))
        self.same += int(np.count_nonzero((pred == clean)[known]))

    def count(self, clean_points: int, corrupted: Corrupted) -> None:
        """Count lost and invented points of a sweep."""
        self.clean_points += clean_points
        self.points += len(corrupted.source)
        self.invented += int(np.count_nonzero(corrupted.invented))

    def figures(self, space: LabelSpace) -> ConditionFigures:
        """All figures."""
        common = Figures.of(self.confusion, space.names, merge_of(space))
        graded = self.calibration is not None and bool(self.confusion.matrix.any())
        return ConditionFigures(
            **common.model_dump(),
            points=self.confusion.points,
            calibration_error=self.calibration.error if graded and self.calibration else None,
            error_auroc=self.ranking.area,
            agreement=self.same / self.compared if self.compared else None,
            lost=1 - self.points / max(self.clean_points, 1),
            invented=self.invented / max(self.points, 1),
        )
