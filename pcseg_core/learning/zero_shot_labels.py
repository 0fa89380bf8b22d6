# SPDX-License-Identifier: Apache-2.0
"""Labels of zero-shot learning: true ones of seen classes, image labels of unseen ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.distill.consolidation import ConsolidationConfig, likeliest
from pcseg_core.distill.labeling import class_probabilities
from pcseg_core.distill.observation import Observation, StoredObservation, scenes
from pcseg_core.errors import InputError
from pcseg_core.labels import IGNORE
from pcseg_core.learning.dataset import TrainingSweep
from pcseg_core.learning.recipe import Recipe, Supervision
from pcseg_core.learning.shards import prepared
from pcseg_core.learning.zero_shot_split import Split

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
    names = list(dict.fromkeys(sweep.scene for sweep in sweeps))
    if len(names) == 1:
        cut = len(sweeps) - max(1, round(share * len(sweeps)))
        return list(sweeps[: max(cut, 1)]), list(sweeps[cut:])
    count = min(max(1, round(share * len(names))), len(names) - 1)
    chosen = {names[int(i)] for i in np.linspace(0, len(names) - 1, count).round()}
    return (
        [sweep for sweep in sweeps if sweep.scene not in chosen],
        [sweep for sweep in sweeps if sweep.scene in chosen],
    )


def label_sweeps(
    kept: Sequence[StoredObservation], split: Split, recipe: Recipe, shards: str | None = None
) -> tuple[Sequence[TrainingSweep], dict[str, float]]:
    """Labeled sweeps, and how good the image labels of unseen classes are.

    The second is for the report: training does not use it. Several processes share the scenes.

    Args:
        kept: the sweeps.
        split: seen and unseen classes.
        recipe: of the run.
        shards: folder or URL of the labeled sweeps; None keeps them in memory.

    Raises:
        InputError: no point has a label.
    """
    counts: Counter[str] = Counter()
    units = [
        (f"{number:06d}", partial(_labeled, members, split, recipe, counts))
        for number, (_, members) in enumerate(scenes(kept))
    ]
    found = prepared(units, shards, lambda: counts)
    counts = found.counts
    if not counts["points"]:
        raise InputError(
            f"no point of the training sweeps has a label under supervision "
            f"'{recipe.supervision}'; it needs labeled recordings, or images for "
            "'annotation-free'"
        )
    return found.sweeps, {
        "unseen_points": counts["unseen"],
        "labeled": counts["labeled"] / max(1, counts["unseen"]),
        "right": counts["right"] / max(1, counts["labeled"]),
    }


def _labeled(
    members: Sequence[StoredObservation], split: Split, recipe: Recipe, counts: Counter[str]
) -> list[TrainingSweep]:
    """The labeled sweeps of a scene; counts their labeled points, and those of unseen classes."""
    assert recipe.supervision is not None
    seen = [stored.load() for stored in members]
    labeled = label_scene(seen, split.mask, recipe.supervision, recipe.labels.consolidation)
    for observation, sweep in zip(seen, labeled):
        assert observation.truth is not None
        labels = sweep.confident(recipe.loss.min_confidence)
        hidden = (observation.truth >= 0) & split.mask[observation.truth]
        given = hidden & (labels != IGNORE)
        right = given & (labels == observation.truth)
        own = {"unseen": hidden, "labeled": given, "right": right, "points": sweep.label != IGNORE}
        counts.update({name: int(chosen.sum()) for name, chosen in own.items()})
    return labeled
