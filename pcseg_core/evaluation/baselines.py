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
import torch
from torch import Tensor

from pcseg_core.checkpoint import load_checkpoint
from pcseg_core.errors import InputError
from pcseg_core.labels import IGNORE
from pcseg_core.models.student import Points, Student, StudentConfig

if TYPE_CHECKING:
    from pcseg_core.cloud import PointCloud

Array = npt.NDArray[Any]
Features = Callable[[Array, Array], Array]

_FIT_POINTS = 200_000
_CALIBRATION_SWEEPS = 8
_NETWORK_SWEEPS = 24  # the untrained network runs on each


def raw_inputs(xyz: Array, intensity: Array) -> Array:
    """z [m], intensity (0..1) and range [m] of each point, float32 (N, 3)."""
    columns = (xyz[:, 2], intensity, np.linalg.norm(xyz, axis=1))
    return np.stack(columns, axis=1).astype(np.float32)


class PseudoLabels:
    """The pseudo-labeled sweeps of a run, read one at a time.

    Args:
        run: run directory with `pseudo_labels/*.npz`.
        minimum: labels of a lower confidence are ignored, as in the training.

    Raises:
        InputError: the run directory has no pseudo labels.
    """

    def __init__(self, run: Path, minimum: float = 0.0) -> None:
        folder = run / "pseudo_labels"
        self.files = sorted(folder.glob("*.npz")) if folder.is_dir() else []
        self.minimum = minimum
        if not self.files:
            raise InputError(f"no pseudo labels in {folder}")

    def __len__(self) -> int:
        return len(self.files)

    def labels(self, index: int) -> Array:
        """Class ids (N,) int64 of a sweep, IGNORE for points left out of the training."""
        label, confidence = self._read(index, "label", "confidence")
        return np.where(confidence >= self.minimum, label, IGNORE).astype(np.int64)

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


class UntrainedNetwork:
    """The student's architecture with random weights, batch norms fitted to training sweeps."""

    def __init__(self, config: StudentConfig, classes: int, seed: int, device: str) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.student = Student(config, classes).to(device).eval()
        self.device = torch.device(device)

    def calibrate(self, sweeps: Sequence[tuple[Array, Array]]) -> None:
        """Set the statistics of every batch norm to their mean over sweeps (xyz, intensity)."""
        norms: list[Any] = [m for m in self.student.modules() if hasattr(m, "running_mean")]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
        self.student.train()
        for xyz, intensity in sweeps:
            self(xyz, intensity)
        self.student.eval()

    @torch.no_grad()
    def __call__(self, xyz: Array, intensity: Array) -> Array:
        """Penultimate features (N, D) float32 of points (N, 3), (N,)."""
        batch = torch.zeros(len(xyz), dtype=torch.int64)
        values = torch.from_numpy(np.asarray(intensity, np.float32))
        points = Points(torch.from_numpy(xyz), values, batch).to(self.device)
        output = self.student(points)
        features: Array = output.features[output.voxels.inverse].cpu().numpy()
        return features


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
    loss = meta.recipe.get("loss", {})
    pseudo = PseudoLabels(run, float(loss.get("min_confidence", 0.0)))
    classes = len(meta.label_space["classes"])
    counts = pseudo.counts(classes)
    if not counts.any():
        raise InputError(f"no point in {run / 'pseudo_labels'} has a label")
    weights = _class_weights(counts.sum(axis=0), float(loss.get("class_balance", 0.5)))
    config = StudentConfig.model_validate(meta.student)
    network = _untrained_network(config, classes, pseudo, seed, device)
    raw = _fit(pseudo, range(len(pseudo)), counts, raw_inputs, weights, config, seed, None)
    chosen = _spread(len(pseudo), _NETWORK_SWEEPS)
    untrained = _fit(pseudo, chosen, counts, network, weights, config, seed, progress)
    majority = Majority(counts.sum(axis=0))
    return {"majority": majority, "linear_raw": raw, "linear_untrained": untrained}


def _untrained_network(
    config: StudentConfig, classes: int, pseudo: PseudoLabels, seed: int, device: str
) -> UntrainedNetwork:
    network = UntrainedNetwork(config, classes, seed, device)
    chosen = _spread(len(pseudo), _CALIBRATION_SWEEPS)
    network.calibrate([pseudo.points(index) for index in chosen])
    return network


def _fit(
    pseudo: PseudoLabels,
    sweeps: Sequence[int],
    counts: Array,
    features: Features,
    class_weights: Array,
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
    weight, bias = fit_logistic(np.concatenate(inputs), np.concatenate(targets), class_weights)
    return LinearClassifier(features, weight, bias, config.max_range_m)


def fit_logistic(
    features: Array, labels: Array, class_weights: Array, decay: float = 1e-4
) -> tuple[Array, Array]:
    """Weighted multinomial logistic regression by L-BFGS; deterministic.

    Args:
        features: (N, D); standardized inside, constant columns are allowed.
        labels: (N,) class ids in 0..C-1.
        class_weights: (C,) weight of the points of each class.
        decay: L2 penalty on the weights of standardized features.

    Returns:
        Weight (D, C) and bias (C,) float32 for features that are not standardized.
    """
    mean, spread = features.mean(axis=0), features.std(axis=0)
    spread = np.where(spread > 1e-6, spread, 1.0)
    x = torch.from_numpy(((features - mean) / spread).astype(np.float32))
    y = torch.from_numpy(labels.astype(np.int64))
    weight = torch.zeros(x.shape[1], len(class_weights), requires_grad=True)
    bias = torch.zeros(len(class_weights), requires_grad=True)
    balance = torch.from_numpy(np.asarray(class_weights, np.float32))
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=200, history_size=20, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        solver.zero_grad()
        value = torch.nn.functional.cross_entropy(x @ weight + bias, y, balance)
        value = value + decay * weight.square().sum()
        value.backward()
        return value

    solver.step(loss)
    scaled = weight.detach().numpy() / spread[:, None]
    shifted = bias.detach().numpy() - mean @ scaled
    return scaled.astype(np.float32), shifted.astype(np.float32)


def run_directory(checkpoint: Path) -> Path:
    """The run directory of a checkpoint given as that directory or as the file inside it."""
    return checkpoint if checkpoint.is_dir() else checkpoint.parent


def _class_weights(counts: Array, balance: float) -> Array:
    """Inverse class frequencies to a power, mean 1 over the labels; as in the training."""
    frequency = counts / counts.sum()
    weights = np.maximum(frequency, 1e-4) ** -balance
    return np.asarray(weights / (weights * frequency).sum())


def _count(labels: Array, classes: int) -> Array:
    known = labels[labels >= 0]
    if known.max(initial=0) >= classes:
        raise InputError(f"pseudo label {known.max()} for a checkpoint of {classes} classes")
    return np.bincount(known, minlength=classes)


def _spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` indices, evenly spread over 0..count-1."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, wanted)).round()})
