# SPDX-License-Identifier: Apache-2.0
"""Labels of the sweeps of a scene from their class evidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pcseg_core.distill.consolidation import ConsolidationConfig, consolidate, likeliest
from pcseg_core.distill.evidence import Evidence
from pcseg_core.distill.observation import Observation
from pcseg_core.distill.pseudo_labels import (
    PseudoLabelConfig,
    apply_priors,
    label_points,
    propagate_labels,
)
from pcseg_core.labels import LabelSpace

Labels: TypeAlias = tuple[npt.NDArray[np.int16], npt.NDArray[np.float32]]
"""(N,) labels, IGNORE for none, and (N,) confidence in 0..1."""


def label_scene(
    sweeps: Sequence[Observation],
    config: PseudoLabelConfig,
    own: Sequence[npt.NDArray[np.float32]] | None = None,
    own_weight: float = 1.0,
) -> list[Labels]:
    """Pseudo labels of the sweeps of one scene, in the order of time.

    With poses, the evidence of all sweeps is fused, by `consolidate` or by `propagate_labels`;
    without, every sweep is labeled by its own evidence.

    Args:
        sweeps: observations with class evidence.
        config: how evidence becomes labels.
        own: (N_i, C) class probabilities of all points of each sweep by the student, or None.
        own_weight: their weight, where one camera's is 1.
    """
    clouds, poses = [s.deskewed for s in sweeps], [s.pose for s in sweeps]
    priors = class_priors(config)
    evidence = [apply_priors(seen, priors) for seen in _evidence(sweeps)]
    if own is not None:
        evidence = [joined(seen, p, own_weight) for seen, p in zip(evidence, own)]
    posed = len(sweeps) > 1 and all(s.posed for s in sweeps)
    if posed and config.consolidation.voxel_m > 0:
        return [likeliest(p) for p in consolidate(clouds, poses, evidence, config.consolidation)]
    if posed and config.propagate_voxel_m > 0:
        return propagate_labels(clouds, poses, evidence, config)
    return [label_points(own, len(xyz)) for own, xyz in zip(evidence, clouds)]


def joined(seen: Evidence, own: npt.NDArray[np.float32], weight: float) -> Evidence:
    """Evidence of cameras and class probabilities of all points (N, C) together."""
    sums, weights = own * weight, own.sum(1) * weight
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
