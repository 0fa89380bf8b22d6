# SPDX-License-Identifier: Apache-2.0
"""Figures of instances: panoptic quality of sweeps, association over time, changes of ids.

In all arrays an instance id of 0 is no instance, and a negative class is no class.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.errors import InputError

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]

MIN_POINTS = 50
"""Least points of a segment that counts as missed, or as wrong, if it has no partner."""

_IDS = np.int64(1) << 33  # instance ids are below


class PanopticQuality:
    """Panoptic quality PQ = SQ * RQ of each class; all figures are fractions in 0..1.

    Kirillov et al., "Panoptic Segmentation", CVPR 2019, on points, as `evaluate_panoptic.py` of
    semantic-kitti-api counts them: a segment is the points of one class and one instance id of a
    sweep; those of a class without instance ids are one segment. A true and a predicted segment of
    one class are partners if their IoU is above 0.5. Points without a true class are left out.

    Attributes:
        matched, wrong, missed: int64 (C,) pairs, predicted and true segments without a partner.
        overlap: (C,) sum of the IoU of the pairs.
    """

    def __init__(self, num_classes: int, min_points: int = MIN_POINTS) -> None:
        """A predicted or true segment without a partner counts from `min_points` points on."""
        self.num_classes, self.min_points = num_classes, min_points
        self.matched, self.wrong, self.missed = np.zeros((3, num_classes), np.int64)
        self.overlap = np.zeros(num_classes)

    def update(self, pred: Array, pred_ids: Array, truth: Array, truth_ids: Array) -> None:
        """Add a sweep.

        Args:
            pred, truth: (N,) class ids.
            pred_ids, truth_ids: (N,) instance ids.

        Raises:
            InputError: shapes differ.
        """
        arrays = _known(truth, pred, pred_ids, truth, truth_ids)
        found, of_pred, pred_size = _segments(*arrays[:2])
        true, of_truth, true_size = _segments(*arrays[2:])
        both = (of_pred >= 0) & (of_truth >= 0)
        pairs, overlap = np.unique(
            of_truth[both] * np.int64(len(found)) + of_pred[both], return_counts=True
        )
        one, two = np.divmod(pairs, max(len(found), 1))
        iou = overlap / (true_size[one] + pred_size[two] - overlap)
        partners = (iou > 0.5) & (true[one] == found[two])
        classes = true[one[partners]]
        self.matched += np.bincount(classes, minlength=self.num_classes)
        self.overlap += np.bincount(classes, iou[partners], self.num_classes)
        self.wrong += self._alone(found, pred_size, two[partners])
        self.missed += self._alone(true, true_size, one[partners])

    def _alone(self, classes: Array, size: Array, matched: Array) -> Array:
        """(C,) segments of each class that are large enough and without a partner."""
        alone = size >= self.min_points
        alone[matched] = False
        return np.bincount(classes[alone], minlength=self.num_classes)

    @property
    def sq(self) -> Float64:
        """Segmentation quality (C,): mean IoU of the pairs; 0 without any, NaN without segments."""
        return np.where(self._occurs, self.overlap / np.maximum(self.matched, 1), np.nan)

    @property
    def rq(self) -> Float64:
        """Recognition quality (C,): the F1 score of the segments; NaN without segments."""
        total = self.matched + 0.5 * self.wrong + 0.5 * self.missed
        return np.where(self._occurs, self.matched / np.maximum(total, 0.5), np.nan)

    @property
    def pq(self) -> Float64:
        """Panoptic quality (C,)."""
        return self.sq * self.rq

    @property
    def _occurs(self) -> npt.NDArray[np.bool_]:
        occurs: npt.NDArray[np.bool_] = (self.matched + self.wrong + self.missed) > 0
        return occurs


class Association:
    """Association quality S_assoc of instances over whole sequences, and LSTQ.

    Aygun et al., "4D Panoptic LiDAR Segmentation", CVPR 2021, equations 3 to 6. As in their
    evaluation, an instance counts in the sweeps in which it has more than `min_points` points.
    """

    def __init__(self, min_points: int = MIN_POINTS) -> None:
        self.min_points = min_points
        self._true: Counter[tuple[str, int, int]] = Counter()
        self._found: Counter[tuple[str, int]] = Counter()
        self._both: Counter[tuple[tuple[str, int, int], int]] = Counter()

    def update(
        self, scene: str, pred: Array, pred_ids: Array, truth: Array, truth_ids: Array
    ) -> None:
        """Add a sweep of a scene; ids of other scenes are other instances.

        Args:
            scene: name.
            pred, pred_ids, truth, truth_ids: (N,) as those of `PanopticQuality.update`; stuff has
                no true ids.
        """
        pred, pred_ids, truth, truth_ids = _known(truth, pred, pred_ids, truth, truth_ids)
        tubes, number, size = np.unique(
            truth * _IDS + truth_ids, return_inverse=True, return_counts=True
        )
        valid = (tubes % _IDS > 0) & (size > self.min_points)
        keys = [(scene, int(tube // _IDS), int(tube % _IDS)) for tube in tubes]
        self._true.update({keys[k]: int(size[k]) for k in np.flatnonzero(valid)})
        ids, counts = np.unique(pred_ids[(pred >= 0) & (pred_ids > 0)], return_counts=True)
        self._found.update({(scene, one): n for one, n in zip(ids.tolist(), counts.tolist())})
        chosen = valid[number] & (pred_ids > 0)
        pairs, counts = np.unique(number[chosen] * _IDS + pred_ids[chosen], return_counts=True)
        for pair, count in zip(pairs.tolist(), counts.tolist()):
            tube, found = divmod(pair, int(_IDS))
            self._both[keys[tube], found] += count

    @property
    def instances(self) -> int:
        """Number of true instances."""
        return len(self._true)

    @property
    def quality(self) -> float:
        """S_assoc in 0..1; NaN without true instances."""
        total = 0.0
        for (tube, found), both in self._both.items():
            true, size = self._true[tube], self._found[tube[0], found]
            total += both * both / (true + size - both) / true
        return total / len(self._true) if self._true else math.nan


def lstq(association: float, iou: Float64) -> float:
    """LSTQ: geometric mean of S_assoc and S_cls, the mean of the IoU of the classes (C,) but NaN.

    Aygun et al., equation 7.
    """
    known = iou[~np.isnan(iou)]
    return math.sqrt(association * float(known.mean())) if len(known) else math.nan


class Identities:
    """How true instances keep their id.

    In each sweep an instance has the predicted id whose points have an IoU above 0.5 with its own.
    Id switches are those of Bernardin and Stiefelhagen, "Evaluating Multiple Object Tracking
    Performance", 2008: the id differs from the last one that the instance had.

    Attributes:
        switches: number of id switches.
    """

    def __init__(self, min_points: int = MIN_POINTS, out_of_sight: int = 10) -> None:
        """Start without instances.

        Args:
            min_points: least points of an instance in a sweep in which it is visible.
            out_of_sight: sweeps in a row after which one that is not visible begins anew.
        """
        self.min_points, self.out_of_sight = min_points, out_of_sight
        self.switches = 0
        self._sweeps = 0
        self._last: dict[tuple[str, int], int] = {}  # id
        self._seen: dict[tuple[str, int], int] = {}  # number of the sweep
        self._sights: dict[tuple[str, int], list[list[int]]] = {}  # ids of each time in sight

    def update(self, scene: str, pred_ids: Array, truth_ids: Array) -> None:
        """Add a sweep: (N,) ids."""
        true, of_truth, true_size = np.unique(truth_ids, return_inverse=True, return_counts=True)
        found, of_pred, pred_size = np.unique(pred_ids, return_inverse=True, return_counts=True)
        pairs, both = np.unique(of_truth * np.int64(len(found)) + of_pred, return_counts=True)
        one, two = np.divmod(pairs, max(len(found), 1))
        iou = both / (true_size[one] + pred_size[two] - both)
        partner = np.zeros(len(true), np.int64)
        chosen = (iou > 0.5) & (found[two] > 0)
        partner[one[chosen]] = found[two[chosen]]
        for k in np.flatnonzero((true > 0) & (true_size >= self.min_points)):
            self._add((scene, int(true[k])), int(partner[k]))
        self._sweeps += 1

    def _add(self, instance: tuple[str, int], found: int) -> None:
        last = self._last.get(instance, 0)
        self.switches += int(last > 0 and found > 0 and found != last)
        if found:
            self._last[instance] = found
        sights = self._sights.setdefault(instance, [])
        if self._sweeps - self._seen.get(instance, -math.inf) > self.out_of_sight:
            sights.append([])
        self._seen[instance] = self._sweeps
        sights[-1].append(found)

    def kept(self, least_sweeps: int = 3) -> tuple[int, int]:
        """Instances that had one id in all sweeps in which they had one, and all instances.

        Counts each time that an instance is in sight, for `least_sweeps` sweeps or more. One that
        never had an id did not keep one.
        """
        every = [ids for sights in self._sights.values() for ids in sights]
        seen = [set(ids) - {0} for ids in every if len(ids) >= least_sweeps]
        return sum(len(ids) == 1 for ids in seen), len(seen)

    @property
    def found(self) -> float:
        """Share of the sweeps in which a visible instance had an id; NaN without instances."""
        every = [ids for sights in self._sights.values() for ids in sights]
        had = [bool(value) for ids in every for value in ids]
        return float(np.mean(had)) if had else math.nan


def _known(truth: Array, *arrays: Array) -> list[npt.NDArray[np.int64]]:
    """The arrays (N,) where there is a true class, as int64."""
    if any(np.shape(array) != np.shape(truth) for array in arrays):
        shapes = ", ".join(str(np.shape(array)) for array in arrays)
        raise InputError(f"classes and instances of shapes {shapes}; expected one shape (N,)")
    known = np.asarray(truth) >= 0
    return [np.asarray(array)[known].astype(np.int64) for array in arrays]


def _segments(classes: Array, ids: Array) -> tuple[Array, Array, Array]:
    """Class of each segment (S,), segment of each point (N,) or -1, and sizes (S,)."""
    labeled = classes >= 0
    keys, number, size = np.unique(
        classes[labeled] * _IDS + ids[labeled], return_inverse=True, return_counts=True
    )
    of_point = np.full(len(classes), -1, np.int64)
    of_point[labeled] = number
    return keys // _IDS, of_point, size
