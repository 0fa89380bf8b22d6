# SPDX-License-Identifier: Apache-2.0
"""Labels of zero-shot learning: true ones of seen classes, image labels of unseen ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.distill.consolidation import ConsolidationConfig, likeliest
from pcseg_core.distill.labeling import class_probabilities
from pcseg_core.distill.observation import Observation, StoredObservation
from pcseg_core.labels import IGNORE
from pcseg_core.learning.dataset import TrainingSweep
from pcseg_core.learning.recipe import Supervision

Array = npt.NDArray[Any]


def label_scene(
    sweeps: Sequence[Observation],
    unseen: npt.NDArray[np.bool_],
    supervision: Supervision,
    consolidation: ConsolidationConfig,
) -> list[TrainingSweep]:
    """The sweeps of one scene with the labels to train on.

    Args:
        sweeps: observations with truth, evidence and pixels.
        unseen: (C,) bool.
        supervision: which labels are used, see `Recipe`.
        consolidation: how evidence is fused over a scene with poses.
    """
    labeled = []
    for sweep, likely in zip(sweeps, class_probabilities(sweeps, consolidation)):
        assert sweep.truth is not None
        label, confidence = zero_shot_labels(sweep.truth, likely, unseen, supervision)
        labeled.append(
            TrainingSweep(sweep.xyz, sweep.intensity, label, confidence, sweep.scene, sweep.pixels)
        )
    return labeled


def zero_shot_labels(
    truth: Array, image: Array, unseen: npt.NDArray[np.bool_], supervision: Supervision
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float32]]:
    """Label and confidence of points.

    A point of a seen class has its true label. Others have the likeliest unseen class of their
    pixels; its confidence is its probability among all classes. An unlabeled point that resembles
    a seen class therefore has a low confidence.

    Args:
        truth: (N,) true classes; those of unseen classes are not used.
        image: (N, C) probabilities by images, 0 for points that no camera sees.
        unseen: (C,) bool.
        supervision: see `Recipe`.

    Returns:
        (N,) int16 labels, IGNORE for none; (N,) float32 confidence in 0..1.
    """
    labels = np.full(len(truth), IGNORE, np.int16)
    confidence = np.zeros(len(truth), np.float32)
    known = np.zeros(len(truth), bool)
    if supervision != "annotation-free":
        known = (truth >= 0) & ~unseen[truth]
        labels[known], confidence[known] = truth[known], 1.0
    if supervision != "seen":
        allowed = np.where(unseen, image, 0) if supervision == "zero-shot" else image
        best, value = likeliest(allowed)
        guessed = ~known & (value > 0)
        labels[guessed], confidence[guessed] = best[guessed], value[guessed]
    return labels, np.minimum(confidence, 1.0)


def hold_out(
    sweeps: Sequence[StoredObservation], share: float
) -> tuple[list[StoredObservation], list[StoredObservation]]:
    """Training sweeps and held-out ones: evenly spaced scenes, or the end of the only one.

    Scenes, since neighboring sweeps show the same objects.
    """
    scenes = list(dict.fromkeys(sweep.scene for sweep in sweeps))
    if len(scenes) == 1:
        cut = len(sweeps) - max(1, round(share * len(sweeps)))
        return list(sweeps[: max(cut, 1)]), list(sweeps[cut:])
    count = min(max(1, round(share * len(scenes))), len(scenes) - 1)
    chosen = {scenes[int(i)] for i in np.linspace(0, len(scenes) - 1, count).round()}
    return (
        [sweep for sweep in sweeps if sweep.scene not in chosen],
        [sweep for sweep in sweeps if sweep.scene in chosen],
    )
