# SPDX-License-Identifier: Apache-2.0
"""Confusion matrix with the figures that follow from it, and calibration of confidences."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.errors import InputError

Labels = npt.NDArray[np.integer[Any]]
Float64 = npt.NDArray[np.float64]


class Confusion:
    """Counts of points by true and predicted class; all figures are fractions in 0..1.

    A point whose truth is negative is ignored. A point with truth but with a negative prediction
    (the model gave no label) is a miss: it counts against the recall, the IoU of its class and
    the accuracy. To measure a method only where it answers, set the truth elsewhere to -1.

    Attributes:
        matrix: int64 (C, C), rows are true classes, columns predicted ones.
        unpredicted: int64 (C,), points of each true class that got no label.
    """

    def __init__(self, num_classes: int) -> None:
        if num_classes < 1:
            raise InputError(f"a confusion matrix needs at least one class, got {num_classes}")
        self.num_classes = num_classes
        self.matrix = np.zeros((num_classes, num_classes), np.int64)
        self.unpredicted = np.zeros(num_classes, np.int64)

    def update(self, pred: Labels, truth: Labels) -> None:
        """Add points.

        Args:
            pred: predicted class ids, any integer type, any shape; negative for no label.
            truth: true class ids of the same shape; negative to leave the point out.

        Raises:
            InputError: the shapes differ or a class id is `num_classes` or more.
        """
        pred, truth = np.asarray(pred), np.asarray(truth)
        if pred.shape != truth.shape:
            raise InputError(f"predictions of shape {pred.shape}, truth of shape {truth.shape}")
        known = truth >= 0
        rows, columns = truth[known].astype(np.int64), pred[known].astype(np.int64)
        highest = max(rows.max(initial=-1), columns.max(initial=-1))
        if highest >= self.num_classes:
            raise InputError(f"class id {highest} in labels of {self.num_classes} classes")
        width = self.num_classes + 1  # the last column takes points without a label
        columns[columns < 0] = self.num_classes
        counts = np.bincount(rows * width + columns, minlength=self.num_classes * width)
        table = counts.reshape(self.num_classes, width)
        self.matrix += table[:, :-1]
        self.unpredicted += table[:, -1]

    def __add__(self, other: Confusion) -> Confusion:
        """Confusion over the points of both."""
        total = Confusion(self.num_classes)
        total.matrix = self.matrix + other.matrix
        total.unpredicted = self.unpredicted + other.unpredicted
        return total

    def grouped(self, grouping: Labels, num_groups: int) -> Confusion:
        """Confusion after mapping every class to a coarser one.

        Args:
            grouping: int (C,), the group of each class, -1 for none: points truly of such a
                class are left out, points predicted as one have no label.
            num_groups: number of groups.
        """
        groups = np.asarray(grouping)
        if groups.shape != (self.num_classes,):
            raise InputError(f"grouping of shape {groups.shape} for {self.num_classes} classes")
        to_group = np.zeros((self.num_classes, num_groups + 1), np.int64)
        to_group[np.arange(self.num_classes), np.where(groups < 0, num_groups, groups)] = 1
        table = to_group.T @ self.matrix @ to_group
        merged = Confusion(num_groups)
        merged.matrix = table[:-1, :-1]
        merged.unpredicted = table[:-1, -1] + to_group[:, :-1].T @ self.unpredicted
        return merged

    @property
    def truth_counts(self) -> npt.NDArray[np.int64]:
        """Points of each true class, int64 (C,)."""
        counts: npt.NDArray[np.int64] = self.matrix.sum(axis=1) + self.unpredicted
        return counts

    @property
    def points(self) -> int:
        """Number of points counted."""
        return int(self.truth_counts.sum())

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """Which classes occur in the truth, bool (C,)."""
        occurs: npt.NDArray[np.bool_] = self.truth_counts > 0
        return occurs

    @property
    def iou(self) -> Float64:
        """Intersection over union of each class, (C,); NaN where neither truth nor prediction."""
        hits = np.diag(self.matrix)
        return _ratio(hits, self.truth_counts + self.matrix.sum(axis=0) - hits)

    @property
    def recall(self) -> Float64:
        """Share of each true class that was found, (C,); NaN for absent classes."""
        return _ratio(np.diag(self.matrix), self.truth_counts)

    @property
    def precision(self) -> Float64:
        """Share of each predicted class that is right, (C,); NaN for classes never predicted."""
        return _ratio(np.diag(self.matrix), self.matrix.sum(axis=0))

    @property
    def miou(self) -> float:
        """Mean IoU over the classes present in the truth; NaN without any point."""
        return float(self.iou[self.present].mean()) if self.points else float("nan")

    @property
    def accuracy(self) -> float:
        """Share of points that are right; NaN without any point."""
        return float(np.trace(self.matrix) / self.points) if self.points else float("nan")


class Calibration:
    """Expected calibration error: how far confidences are from the share that is right.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, eq. 3: confidences fall
    into bins of equal width, and the error is the mean over points of |accuracy - confidence| of
    their bin.
    """

    def __init__(self, bins: int = 15) -> None:
        self.bins = bins
        self._count = np.zeros(bins)
        self._right = np.zeros(bins)
        self._confidence = np.zeros(bins)

    def update(self, confidence: npt.NDArray[Any], right: npt.NDArray[np.bool_]) -> None:
        """Add points: confidences (N,) in 0..1 and whether each prediction was right (N,)."""
        values = np.asarray(confidence, np.float64)
        index = np.clip((values * self.bins).astype(np.int64), 0, self.bins - 1)
        self._count += np.bincount(index, minlength=self.bins)
        self._right += np.bincount(index, weights=right, minlength=self.bins)
        self._confidence += np.bincount(index, weights=values, minlength=self.bins)

    @property
    def points(self) -> npt.NDArray[np.int64]:
        """Number of points in each bin, (B,)."""
        return self._count.astype(np.int64)

    @property
    def confidence(self) -> Float64:
        """Mean confidence of each bin, (B,); NaN for empty ones."""
        return _ratio(self._confidence, self._count)

    @property
    def accuracy(self) -> Float64:
        """Share of the points of each bin that is right, (B,); NaN for empty ones."""
        return _ratio(self._right, self._count)

    @property
    def error(self) -> float:
        """Expected calibration error in 0..1; NaN without any point."""
        total = self._count.sum()
        gap = np.abs(self._right - self._confidence).sum()
        return float(gap / total) if total else float("nan")


class ScanCalibration:
    """Expected calibration error with 10 bins, as the mean over scans (Calib3D, arXiv 2403.17010).

    Attributes:
        total: calibration over the points of all scans.
        errors: error of each scan.
    """

    def __init__(self) -> None:
        self.total = Calibration(bins=10)
        self.errors: list[float] = []

    def add(self, confidence: npt.NDArray[Any], right: npt.NDArray[np.bool_]) -> None:
        """Add a scan, see `Calibration.update`; one without points is left out."""
        if len(confidence):
            scan = Calibration(self.total.bins)
            scan.update(confidence, right)
            self.errors.append(scan.error)
            self.total.update(confidence, right)


def _ratio(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> Float64:
    result = np.full(whole.shape, np.nan)
    np.divide(part, whole, out=result, where=whole > 0)
    return result
