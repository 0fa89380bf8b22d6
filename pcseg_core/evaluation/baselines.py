# SPDX-License-Identifier: Apache-2.0
"""Baselines of a student: the majority class, and linear classifiers without a trained network.

All are fitted to the pseudo labels in the run directory of the student, with the confidence
threshold and the class weights of its training.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pcseg_core.checkpoint import load_checkpoint
from pcseg_core.data import evenly_spaced
from pcseg_core.distill.losses import (
    LabelLossConfig,
    class_weights,
    confident_labels,
    required_confidence,
)
from pcseg_core.errors import InputError
from pcseg_core.labels import IGNORE
from pcseg_core.learning.linear import logistic_regression
from pcseg_core.learning.probe import Features, UntrainedNetwork, raw_inputs
from pcseg_core.learning.run_folder import local_run
from pcseg_core.models.student import StudentConfig, stored_config
from pcseg_core.storage import as_url

if TYPE_CHECKING:
    from pcseg_core.cloud import PointCloud

Array = npt.NDArray[Any]

_FIT_POINTS = 200_000
_CALIBRATION_SWEEPS = 8
_NETWORK_SWEEPS = 24  # the untrained network runs on each


class PseudoLabels:
    """The pseudo-labeled sweeps of a run, read one at a time.

    Args:
        run: run directory with `pseudo_labels/*.npz`.
        required: least confidence of the labels that count, see `confident_labels`.

    Raises:
        InputError: the run directory has no pseudo labels.
    """

    def __init__(self, run: Path, required: float | Array = 0.0) -> None:
        folder = run / "pseudo_labels"
        self.files = sorted(folder.glob("*.npz")) if folder.is_dir() else []
        self.required = required
        if not self.files:
            raise InputError(f"no pseudo labels in {folder}")

    def __len__(self) -> int:
        return len(self.files)

    def labels(self, index: int) -> Array:
        """Class ids (N,) int64 of a sweep, IGNORE for points left out of the training."""
        label, confidence = self._read(index, "label", "confidence")
        return confident_labels(label, confidence, self.required)

    def confidence(self, index: int) -> Array:
        """Confidence (N,) float32 in 0..1 of a sweep's labels."""
        return self._read(index, "confidence")[0].astype(np.float32)

    def points(self, index: int) -> tuple[Array, Array]:
        """xyz (N, 3) float32 [m] and intensity (N,) float32 of a sweep."""
        xyz, intensity = self._read(index, "xyz", "intensity")
        return xyz.astype(np.float32), intensity.astype(np.float32)

    def counts(self, classes: int) -> Array:
        """Labeled points of each sweep and class, int64 (S, C)."""
        rows = [_count(self.labels(index), classes) for index in range(len(self))]
        return np.array(rows)

    @classmethod
    def trained_on(cls, run: Path, loss: LabelLossConfig) -> PseudoLabels:
        """With the labels that a training with these losses used.

        Raises:
            InputError: the run directory has no pseudo labels.
        """
        every = cls(run)
        pairs = (every._read(index, "label", "confidence") for index in range(len(every)))
        required = required_confidence(((pair[0], pair[1]) for pair in pairs), loss)
        return cls(run, required)

    def _read(self, index: int, *names: str) -> list[Array]:
        path = self.files[index]
        try:
            with np.load(path, allow_pickle=False) as stored:
                return [stored[name] for name in names]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{path}: not a pseudo-label file ({error}); run `pcseg distill` again, or "
                "evaluate with --no-baselines"
            ) from error


class Majority:
    """Predicts the most frequent class of the pseudo labels for every point."""

    def __init__(self, counts: Array) -> None:
        self.label = int(np.argmax(counts))

    def __call__(self, cloud: PointCloud) -> Array:
        return np.full(len(cloud), self.label, np.int64)


class LinearClassifier:
    """Multinomial logistic regression on standardized features of points.

    Args:
        features: maps xyz (N, 3) and intensity (N,) to features (N, D).
        weight, bias: (D, C) and (C,), for features that are not standardized.
        max_range_m: points beyond it get no label, as with the student.
    """

    def __init__(self, features: Features, weight: Array, bias: Array, max_range_m: float) -> None:
        self.features, self.weight, self.bias = features, weight, bias
        self.max_range_m = max_range_m

    def __call__(self, cloud: PointCloud) -> Array:
        xyz = np.asarray(cloud.xyz, np.float32)
        reach = np.linalg.norm(xyz, axis=1)  # NaN and infinite points fail the comparison
        usable = np.flatnonzero(reach <= self.max_range_m)
        intensity = cloud.intensity if cloud.intensity is not None else np.zeros(len(xyz))
        labels = np.full(len(xyz), IGNORE, np.int64)
        if len(usable):
            values = self.features(xyz[usable], np.nan_to_num(intensity[usable]))
            labels[usable] = np.argmax(values @ self.weight + self.bias, axis=1)
        return labels


def fit_baselines(
    run: Path,
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Callable[[PointCloud], Array]]:
    """Fit "majority", "linear_raw" and "linear_untrained" to the pseudo labels of a run.

    Each maps a cloud of N points to class ids (N,) of the run's label space. The same run and
    seed give the same baselines.

    Raises:
        InputError: the run has no checkpoint or no pseudo labels.
    """
    _, meta = load_checkpoint(run)
    stored = {"min_confidence": 0.0, **meta.recipe.get("loss", {})}
    loss = LabelLossConfig(**{k: v for k, v in stored.items() if k in LabelLossConfig.model_fields})
    pseudo = PseudoLabels.trained_on(run, loss)
    classes = len(meta.label_space["classes"])
    counts = pseudo.counts(classes)
    if not counts.any():
        raise InputError(f"no point in {run / 'pseudo_labels'} has a label")
    weights = class_weights(counts.sum(axis=0), loss.class_balance)
    config = stored_config(meta.student, run)
    network = _untrained_network(config, classes, pseudo, seed, device)
    raw = _fit(pseudo, range(len(pseudo)), counts, raw_inputs, weights, config, seed, None)
    chosen = evenly_spaced(len(pseudo), _NETWORK_SWEEPS)
    untrained = _fit(pseudo, chosen, counts, network, weights, config, seed, progress)
    majority = Majority(counts.sum(axis=0))
    return {"majority": majority, "linear_raw": raw, "linear_untrained": untrained}


def _untrained_network(
    config: StudentConfig, classes: int, pseudo: PseudoLabels, seed: int, device: str
) -> UntrainedNetwork:
    network = UntrainedNetwork(config, classes, seed, device)
    chosen = evenly_spaced(len(pseudo), _CALIBRATION_SWEEPS)
    network.calibrate([pseudo.points(index) for index in chosen])
    return network


def _fit(
    pseudo: PseudoLabels,
    sweeps: Sequence[int],
    counts: Array,
    features: Features,
    balance: Array,
    config: StudentConfig,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> LinearClassifier:
    """Fit a classifier to a random sample of the labeled points of the sweeps."""
    rng = np.random.default_rng(seed)
    per_sweep = counts[list(sweeps)].sum(axis=1)
    share = min(1.0, _FIT_POINTS / max(per_sweep.sum(), 1))
    inputs, targets = [], []
    for done, index in enumerate(sweeps):
        labels = pseudo.labels(index)
        labeled = np.flatnonzero(labels >= 0)
        drawn = np.sort(rng.choice(labeled, int(share * len(labeled)), replace=False))
        if len(drawn):
            inputs.append(features(*pseudo.points(index))[drawn])
            targets.append(labels[drawn])
        if progress:
            progress(done + 1, len(sweeps))
    weight, bias = logistic_regression(np.concatenate(inputs), np.concatenate(targets), balance)
    return LinearClassifier(features, weight, bias, config.max_range_m)


def run_directory(checkpoint: Path) -> Path:
    """The run directory of a checkpoint given as that directory or as the file inside it.

    One at a URL is fetched, see `local_run`.
    """
    if as_url(checkpoint):
        return local_run(checkpoint.parent if checkpoint.suffix else checkpoint)
    return checkpoint if checkpoint.is_dir() else checkpoint.parent


def _count(labels: Array, classes: int) -> Array:
    known = labels[labels >= 0]
    if known.max(initial=0) >= classes:
        raise InputError(f"pseudo label {known.max()} for a checkpoint of {classes} classes")
    return np.bincount(known, minlength=classes)
