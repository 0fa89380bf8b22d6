# SPDX-License-Identifier: Apache-2.0
"""Labels of the sweeps of a scene from their class evidence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pcseg_core.distill.consolidation import (
    ConsolidationConfig,
    NoiseEstimate,
    consolidate,
    likeliest,
    moving_points,
    probabilities_alone,
)
from pcseg_core.distill.evidence import Evidence
from pcseg_core.distill.ground import ground_classes
from pcseg_core.distill.observation import Observation
from pcseg_core.distill.pseudo_labels import (
    PseudoLabelConfig,
    apply_priors,
    own_shares,
    propagated_shares,
)
from pcseg_core.distill.shape import Shape, shape_of
from pcseg_core.distill.shape_model import ShapeModel
from pcseg_core.labels import LabelSpace

Labels: TypeAlias = tuple[npt.NDArray[np.int16], npt.NDArray[np.float32]]
"""(N,) labels, IGNORE for none, and (N,) confidence in 0..1."""

_LEAST_WEIGHT = 0.05  # of a pixel at a grazing angle


@dataclass(frozen=True)
class LabelModel:
    """What is estimated from the sweeps of a run, to label them.

    Attributes:
        shapes: shapes of the classes; None if they are not used.
        confusion: of one look, see `NoiseEstimate`; None for the constant noise.
    """

    shapes: ShapeModel | None = None
    confusion: npt.NDArray[np.float64] | None = None


def fit_label_model(
    scenes: Iterable[Sequence[Observation]], config: PseudoLabelConfig
) -> LabelModel:
    """Estimate the shapes of the classes and the confusion of looks, as far as `config` asks.

    Args:
        scenes: observations with class evidence, scene by scene in the order of time. A generator
            keeps one scene in memory.
        config: how evidence becomes labels.
    """
    if config.shape.weight == 0 and not config.consolidation.estimate_noise:
        return LabelModel()
    shapes = ShapeModel(ground_classes(LabelSpace.load(config.label_space)), config.shape)
    noise = NoiseEstimate(config.consolidation)
    for sweeps in scenes:
        scene = _Scene(sweeps, config)
        if config.shape.weight > 0:
            scene.count_shapes(shapes)
        if config.consolidation.estimate_noise and scene.posed and config.consolidation.voxel_m:
            noise.add(scene.clouds, scene.poses, scene.evidence)
    return LabelModel(shapes if config.shape.weight > 0 else None, noise.estimate())


def label_scene(
    sweeps: Sequence[Observation],
    config: PseudoLabelConfig,
    model: LabelModel | None = None,
    student: Sequence[npt.NDArray[np.float32]] | None = None,
    told_apart: Sequence[int] = (),
) -> list[Labels]:
    """Pseudo labels of the sweeps of one scene, in the order of time.

    With poses, the evidence of all sweeps is fused, by `consolidate` or by `propagated_shares`;
    without, every sweep is labeled by its own evidence.

    Args:
        sweeps: observations with class evidence.
        config: how evidence becomes labels.
        model: estimated from all scenes of the run; None estimates it from this scene alone.
        student: (N_i, C) class probabilities of all points of each sweep by a student, times their
            weight, where one camera's is 1; None for none.
        told_apart: classes that cameras take for each other and the student tells apart, see
            `split`.
    """
    scene = _Scene(sweeps, config)
    cameras = scene.evidence
    if student is not None:
        scene.evidence = [
            joined(split(seen, own, told_apart), own) for seen, own in zip(cameras, student)
        ]
    model = fit_label_model([sweeps], config) if model is None else model
    found = []
    for sweep, shares, own in zip(range(len(sweeps)), scene.fused(model), cameras):
        if model.shapes is not None:
            shares = _reshaped(shares, model.shapes.logs(scene.shape(sweep)))
        label, confidence = likeliest(shares)
        carried = np.ones(len(label), bool)
        carried[own.index] = False
        found.append((label, np.where(carried, confidence * config.carried_confidence, confidence)))
    return found


class _Scene:
    """The sweeps of a scene with weighted evidence."""

    def __init__(self, sweeps: Sequence[Observation], config: PseudoLabelConfig) -> None:
        self.config = config
        self.clouds, self.poses = [s.deskewed for s in sweeps], [s.pose for s in sweeps]
        self.intensities = [s.intensity for s in sweeps]
        self.posed = len(sweeps) > 1 and all(s.posed for s in sweeps)
        self._shapes: dict[int, Shape] = {}
        priors = class_priors(config)
        self.evidence = [
            self._weighed(k, apply_priors(own, priors)) for k, own in enumerate(_evidence(sweeps))
        ]

    def shape(self, sweep: int) -> Shape:
        """Shape around the points of a sweep. It is not kept: those of a drive fill the memory."""
        if sweep in self._shapes:
            return self._shapes.pop(sweep)
        return shape_of(self.clouds[sweep], self.intensities[sweep], self.config.shape.ground)

    def fused(self, model: LabelModel) -> list[npt.NDArray[np.float32]]:
        """Class shares or probabilities (N_i, C) of all points, 0 where nothing is known."""
        config = self.config
        if self.posed and config.consolidation.voxel_m > 0:
            return consolidate(
                self.clouds, self.poses, self.evidence, config.consolidation, model.confusion
            )
        if self.posed and config.propagate_voxel_m > 0:
            moving = None
            if not config.propagate_moving:
                moving = moving_points(self.clouds, self.poses, config.consolidation)
            return propagated_shares(self.clouds, self.poses, self.evidence, config, moving)
        own = zip(self.evidence, (len(xyz) for xyz in self.clouds))
        if model.confusion is not None:
            return [probabilities_alone(e, count, model.confusion) for e, count in own]
        return [own_shares(e, count) for e, count in own]

    def count_shapes(self, shapes: ShapeModel) -> None:
        """Count the shapes of evenly spaced sweeps at their confident labels."""
        chosen = np.linspace(0, len(self.clouds) - 1, min(len(self.clouds), shapes.config.sweeps))
        for k in np.unique(chosen.astype(int)):
            own = self.evidence[k]
            label, confidence = likeliest(own_shares(own, len(self.clouds[k])))
            weight = np.zeros(len(label))
            weight[own.index] = np.minimum(1, own.weights)
            weight[confidence < shapes.config.min_confidence] = 0
            shapes.add(self.shape(k), label, weight)

    def _weighed(self, sweep: int, own: Evidence) -> Evidence:
        """Evidence of a sweep, with less weight far away and at grazing angles."""
        config = self.config
        if config.full_range_m == 0 and config.full_angle_deg == 0:
            return own
        shape = self._shapes[sweep] = self.shape(sweep)
        factor = np.ones(len(own.index), np.float32)
        if config.full_range_m > 0:
            factor *= config.full_range_m / np.maximum(shape.range[own.index], config.full_range_m)
        if config.full_angle_deg > 0:
            full = np.sin(np.radians(config.full_angle_deg))
            factor *= np.clip(shape.incidence[own.index] / full, _LEAST_WEIGHT, 1)
        return Evidence(own.index, own.weights * factor, own.sums * factor[:, None])


def _reshaped(
    shares: npt.NDArray[np.float32], logs: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """Shares (N, C) times the likelihood of shapes, with the total of each point kept."""
    scaled = shares * np.exp(logs)
    before, after = shares.sum(1), scaled.sum(1)
    keep = np.divide(before, after, out=np.zeros_like(after), where=after > 0)
    result: npt.NDArray[np.float32] = (scaled * keep[:, None]).astype(np.float32)
    return result


def split(seen: Evidence, student: npt.NDArray[np.float32], classes: Sequence[int]) -> Evidence:
    """Evidence of cameras with its shares of some classes multiplied by a student's.

    Cameras and student are independent witnesses of which of these classes it is; the total of
    the classes stays. Points where the student says nothing keep their evidence.

    Args:
        seen: of the cameras.
        student: (N, C) probabilities of all points, times any factor.
        classes: at least two, or none.
    """
    if not len(classes):
        return seen
    own = seen.sums[:, classes]
    product = own * student[seen.index][:, classes]
    before, after = own.sum(1), product.sum(1)
    sums, rows = seen.sums.copy(), np.flatnonzero(after)
    own[rows] = product[rows] * (before[rows] / after[rows])[:, None]
    sums[:, classes] = own
    return Evidence(seen.index, seen.weights, sums)


def joined(seen: Evidence, student: npt.NDArray[np.float32]) -> Evidence:
    """Evidence of cameras and weighted class probabilities of all points (N, C) together."""
    sums, weights = student.copy(), student.sum(1)
    sums[seen.index] += seen.sums
    weights[seen.index] += seen.weights
    index = np.flatnonzero(weights).astype(np.int32)
    return Evidence(index, weights[index], sums[index])


def class_probabilities(
    sweeps: Sequence[Observation], config: ConsolidationConfig
) -> list[npt.NDArray[np.float32]]:
    """Class probabilities (N, C) of the sweeps of one scene, 0 where no camera sees anything.

    With poses, the evidence of all sweeps is fused if the voxels of `config` have a size.
    """
    evidence = _evidence(sweeps)
    if config.voxel_m > 0 and all(sweep.posed for sweep in sweeps):
        clouds, poses = [s.deskewed for s in sweeps], [s.pose for s in sweeps]
        return consolidate(clouds, poses, evidence, config)
    found = []
    for own, sweep in zip(evidence, sweeps):
        probabilities = np.zeros((len(sweep.xyz), own.sums.shape[1]), np.float32)
        probabilities[own.index] = own.sums / own.weights[:, None]
        found.append(probabilities)
    return found


def class_priors(config: PseudoLabelConfig) -> npt.NDArray[np.float32]:
    """(C,) factors on the probabilities of the classes."""
    space = LabelSpace.load(config.label_space)
    priors = np.ones(len(space), np.float32)
    for name, factor in config.priors.items():
        priors[space.index(name)] = factor
    return priors


def _evidence(sweeps: Sequence[Observation]) -> list[Evidence]:
    return [sweep.evidence for sweep in sweeps if sweep.evidence is not None]
