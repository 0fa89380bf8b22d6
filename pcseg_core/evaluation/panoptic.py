# SPDX-License-Identifier: Apache-2.0
"""Measure instances and tracks on sweeps whose labels have instance ids."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pcseg_core.evaluation.report import ClassQuality, PanopticFigures
from pcseg_core.labels import LabelSpace
from pcseg_core.metrics.confusion import Confusion
from pcseg_core.metrics.panoptic import MIN_POINTS, Association, Identities, PanopticQuality, lstq
from pcseg_core.online.moving import THINGS
from pcseg_core.online.pipeline import LabeledSweep
from pcseg_core.online.tracks import TrackRules

if TYPE_CHECKING:
    from pcseg_core.data import Sample

Array = npt.NDArray[Any]


class InstanceMeasure:
    """Compares the instances of labeled sweeps with the true ones.

    Args:
        source: classes of the pipeline.
        space: classes of the figures.
        min_points: see `PanopticFigures`.
    """

    def __init__(self, source: LabelSpace, space: LabelSpace, min_points: int = MIN_POINTS) -> None:
        self.space, self.min_points = space, min_points
        self.rules = TrackRules(tuple(name for name in source.names if name in THINGS))
        self._things = np.array([name in THINGS for name in space.names])
        self._quality = PanopticQuality(len(space), min_points)
        self._association, self._identities = Association(min_points), Identities(min_points)
        self._confusion = Confusion(len(space))
        self._sweeps = self._tracked = 0

    def add(self, sample: Sample, labeled: LabeledSweep, pred: Array, truth: Array) -> None:
        """Add a sweep with instance ids.

        Args:
            sample: the sweep.
            labeled: labels, and the tracks of `rules`.
            pred, truth: (N,) classes in the space of the figures.
        """
        true_ids = np.where(self._is_thing(truth), true_instances(sample), 0)
        ids = np.where(self._is_thing(pred), self._instances(labeled), 0)
        self._sweeps += 1
        self._quality.update(pred, ids, truth, true_ids)
        if labeled.pose is not None:
            self._tracked += 1
            self._association.update(sample.scene, pred, ids, truth, true_ids)
            self._identities.update(sample.scene, ids, true_ids)
            self._confusion.update(pred, truth)

    def _is_thing(self, labels: Array) -> npt.NDArray[np.bool_]:
        found: npt.NDArray[np.bool_] = np.append(self._things, False)[labels]
        return found

    def _instances(self, labeled: LabeledSweep) -> Array:
        if labeled.tracked is not None and labeled.pose is not None:
            return labeled.tracked.instances
        return self.rules.cluster(labeled.cloud.xyz, labeled.labels, labeled.label_space)

    def figures(self) -> PanopticFigures | None:
        """The figures; None without a sweep."""
        quality = self._quality
        occurs = ~np.isnan(quality.pq)
        if not self._sweeps or not occurs.any():
            return None
        things = occurs & self._things
        association = self._association.quality
        tracked = self._tracked > 0 and not math.isnan(association)
        iou = self._confusion.iou
        return PanopticFigures(
            min_points=self.min_points,
            sweeps=self._sweeps,
            pq=float(quality.pq[occurs].mean()),
            sq=float(quality.sq[occurs].mean()),
            rq=float(quality.rq[occurs].mean()),
            pq_things=float(quality.pq[things].mean()) if things.any() else None,
            classes={
                self.space.names[k]: ClassQuality(
                    pq=quality.pq[k], sq=quality.sq[k], rq=quality.rq[k]
                )
                for k in np.flatnonzero(occurs)
            },
            lstq=lstq(association, iou) if tracked else None,
            s_assoc=association if tracked else None,
            s_cls=float(np.nanmean(iou)) if tracked else None,
            id_switches=self._identities.switches if tracked else None,
            instances=self._association.instances if tracked else None,
        )


def true_instances(sample: Sample) -> npt.NDArray[np.int64]:
    """(N,) ids from 1, 0 for none; SemanticKITTI numbers the instances of each class."""
    assert sample.instances is not None and sample.labels is not None
    assert sample.label_space is not None
    ids, classes = sample.instances.astype(np.int64), len(sample.label_space) + 1
    return np.where(ids >= 0, ids * classes + sample.labels + 2, 0)
