# SPDX-License-Identifier: Apache-2.0
"""Labels of zero-shot learning, and the batches they are trained in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pcseg_core.distill.consolidation import ConsolidationConfig, consolidate, likeliest
from pcseg_core.labels import IGNORE
from pcseg_core.learning.dataset import Batch, StepDataset, TrainingSweep, collate
from pcseg_core.learning.zero_shot_data import Observed
from pcseg_core.learning.zero_shot_recipe import Supervision

Array = npt.NDArray[Any]


@dataclass
class AlignedSweep(TrainingSweep):
    """A training sweep with its image features.

    Attributes:
        patch: (S,) int32 row of `patch_features` of each point with features.
        patch_features: (R, D) float16 mean feature of each image patch.
    """

    patch: np.ndarray | None = None
    patch_features: np.ndarray | None = None

    def select(self, labels: np.ndarray, keep: np.ndarray) -> AlignedSweep:
        """The points at positions `keep` (K,) in ascending order, with other labels (N,)."""
        assert self.patch is not None and self.feature_index is not None
        base = super().select(labels, keep)
        patch = self.patch[self.kept_pairs(keep) >= 0]
        return AlignedSweep(**vars(base), patch=patch, patch_features=self.patch_features)


@dataclass
class AlignedBatch(Batch):
    """A batch with patches.

    Attributes:
        patches: (S,) int64 row of `patch_features` of each point with features.
        patch_features: (R, D) float32, of all sweeps of the batch.
    """

    patches: Tensor
    patch_features: Tensor


class AlignedDataset(StepDataset):
    """Batches whose points know the image patches they lie in."""

    def collate(self, parts: list[TrainingSweep]) -> AlignedBatch:
        """Sectors as one batch; patches are numbered through."""
        rows, means, start = [], [], 0
        for part in parts:
            assert isinstance(part, AlignedSweep)
            assert part.patch is not None and part.patch_features is not None
            rows.append(part.patch.astype(np.int64) + start)
            means.append(part.patch_features.astype(np.float32))
            start += len(part.patch_features)
        return AlignedBatch(
            **vars(collate(parts)),
            patches=torch.from_numpy(np.concatenate(rows)),
            patch_features=torch.from_numpy(np.concatenate(means)),
        )


def training_sweeps(
    observed: Sequence[Observed],
    unseen: npt.NDArray[np.bool_],
    supervision: Supervision,
    consolidation: ConsolidationConfig,
) -> list[AlignedSweep]:
    """What is trained on: true labels of seen classes, image labels of unseen ones.

    Args:
        observed: sweeps with truth and evidence.
        unseen: (C,) bool.
        supervision: what labels are used, see ZeroShotRecipe.
        consolidation: how evidence is fused over a scene with poses.
    """
    probabilities = image_probabilities(observed, consolidation)
    found = []
    for sweep, image in zip(observed, probabilities):
        labels, confidence = zero_shot_labels(sweep.truth, image, unseen, supervision)
        view = sweep.view
        found.append(
            AlignedSweep(
                sweep.xyz,
                sweep.intensity,
                labels,
                confidence,
                sweep.scene,
                view.features,
                view.index,
                view.patch,
                view.patch_features,
            )
        )
    return found


def image_probabilities(
    observed: Sequence[Observed], config: ConsolidationConfig
) -> list[npt.NDArray[np.float32]]:
    """Per sweep (N, C) class probabilities from images, 0 where no camera sees anything.

    Sweeps of one scene are fused where it has poses and the voxels have a size.
    """
    scenes: dict[str, list[int]] = {}
    for i, sweep in enumerate(observed):
        scenes.setdefault(sweep.scene, []).append(i)
    found: dict[int, npt.NDArray[np.float32]] = {}
    for members in scenes.values():
        sweeps = [observed[i] for i in members]
        posed = all(np.isfinite(sweep.pose).all() for sweep in sweeps)
        if config.voxel_m > 0 and posed:
            evidence = [sweep.evidence for sweep in sweeps]
            fused = consolidate(
                [s.still for s in sweeps], [s.pose for s in sweeps], evidence, config
            )
        else:
            fused = [_own(sweep) for sweep in sweeps]
        found |= dict(zip(members, fused))
    return [found[i] for i in range(len(observed))]


def _own(sweep: Observed) -> npt.NDArray[np.float32]:
    evidence = sweep.evidence
    own = np.zeros((len(sweep.xyz), evidence.sums.shape[1]), np.float32)
    own[evidence.index] = evidence.sums / evidence.weights[:, None]
    return own


def zero_shot_labels(
    truth: Array, image: Array, unseen: npt.NDArray[np.bool_], supervision: Supervision
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float32]]:
    """Label and confidence of points.

    A point of a seen class has its true label. Others have the likeliest unseen class of their
    pixels; its confidence is its probability among all classes, so that a point that looks like
    something seen, but was left unlabeled, stays out below the least confidence.

    Args:
        truth: (N,) true classes; those of unseen classes are not looked at.
        image: (N, C) probabilities from images, 0 where there are none.
        unseen: (C,) bool.
        supervision: see ZeroShotRecipe.

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


def hold_out(observed: Sequence[Observed], share: float) -> tuple[list[Observed], list[Observed]]:
    """Training sweeps and held-out ones: whole scenes, or the end of the only one.

    Neighboring sweeps show the same things, hence scenes, evenly spaced.
    """
    scenes = list(dict.fromkeys(sweep.scene for sweep in observed))
    if len(scenes) == 1:
        cut = len(observed) - max(1, round(share * len(observed)))
        return list(observed[: max(cut, 1)]), list(observed[cut:])
    count = min(max(1, round(share * len(scenes))), len(scenes) - 1)
    chosen = {scenes[int(i)] for i in np.linspace(0, len(scenes) - 1, count).round()}
    return (
        [sweep for sweep in observed if sweep.scene not in chosen],
        [sweep for sweep in observed if sweep.scene in chosen],
    )
