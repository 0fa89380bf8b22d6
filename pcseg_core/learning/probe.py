# SPDX-License-Identifier: Apache-2.0
"""Linear probe: the quality of a frozen network, measured by a linear classifier on its features.

The classifier is fitted to labeled scans of one place and measured on another. For comparison, the
same is done with the architecture with random weights (batch norms calibrated on the scans), and
with the raw inputs: an untrained network can be worse than its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pcseg_core.checkpoint import load_checkpoint, load_strictly
from pcseg_core.data import Recording, Sample, readable
from pcseg_core.distill.losses import class_weights
from pcseg_core.errors import InputError
from pcseg_core.labels import IGNORE, LabelSpace, truth_of
from pcseg_core.learning.linear import logistic_regression
from pcseg_core.metrics.confusion import Confusion
from pcseg_core.metrics.figures import Figures, merge_of
from pcseg_core.models.student import Points, Student, StudentConfig, StudentOutput, stored_config

Array = npt.NDArray[Any]
Features = Callable[[Array, Array], Array]

_ROUNDS, _ITERATIONS = 20, 10  # of L-BFGS; the curve has a point per round
_HELD_OUT = 0.1  # share of the fitting points that only the curve sees
_CALIBRATION_SCANS = 8


@dataclass
class Scan:
    """Labeled points of one sweep.

    Attributes:
        name: of the sweep.
        xyz: (N, 3) float32 finite points within range [m].
        intensity: (N,) float32 in 0..1.
        truth: (N,) int64 class of the probe's label space, IGNORE for none.
        missed: (C,) int64 labeled points of each class beyond the range; they count as wrong.
    """

    name: str
    xyz: Array
    intensity: Array
    truth: Array
    missed: Array


def read_scans(recording: Recording, space: LabelSpace, max_range_m: float) -> Iterator[Scan]:
    """The labeled sweeps of a recording; others are counted in its `skipped`."""
    for _, sample in readable(recording):
        scan = labeled_scan(recording, sample, space, max_range_m)
        if scan is not None:
            yield scan


def labeled_scan(
    recording: Recording, sample: Sample, space: LabelSpace, max_range_m: float
) -> Scan | None:
    """The labeled points of a sample; None, counted in `skipped`, if it has no labels."""
    if sample.labels is None:
        recording.skipped["sweep without labels"] += 1
        return None
    cloud, truth = sample.cloud, truth_of(sample, space)
    near = cloud.finite & (np.linalg.norm(cloud.xyz, axis=1) <= max_range_m)
    intensity = cloud.intensity if cloud.intensity is not None else np.zeros(len(cloud))
    beyond = truth[~near]
    return Scan(
        sample.name,
        cloud.xyz[near].astype(np.float32),
        np.nan_to_num(intensity[near]).astype(np.float32),
        truth[near],
        np.bincount(beyond[beyond != IGNORE], minlength=len(space)),
    )


@torch.no_grad()
def run_student(student: Student, xyz: Array, intensity: Array) -> StudentOutput:
    """Output of a student, in its current mode, for the points (N, 3), (N,) of one sweep."""
    batch = torch.zeros(len(xyz), dtype=torch.int64)
    values = torch.from_numpy(np.asarray(intensity, np.float32))
    points = Points(torch.from_numpy(xyz), values, batch)
    device = next(student.parameters()).device
    output: StudentOutput = student(points.to(device))
    return output


def by_point(values: Tensor, output: StudentOutput) -> Array:
    """(N, ...) values of the points of a sweep, from those of its voxels (M, ...)."""
    found: Array = values[output.voxels.inverse].cpu().numpy()
    return found


def raw_inputs(xyz: Array, intensity: Array) -> Array:
    """z [m], intensity (0..1) and range [m] of each point, float32 (N, 3)."""
    columns = (xyz[:, 2], intensity, np.linalg.norm(xyz, axis=1))
    return np.stack(columns, axis=1).astype(np.float32)


class FrozenNetwork:
    """Penultimate features of a student in evaluation mode, per point."""

    def __init__(self, student: Student, device: str = "cpu") -> None:
        self.student = student.to(device).eval()

    @classmethod
    def load(cls, run: Path, device: str = "cpu") -> FrozenNetwork:
        """The network of a checkpoint or run directory."""
        state, meta = load_checkpoint(run)
        student = Student(stored_config(meta.student, run), len(meta.label_space["classes"]))
        load_strictly(student, state, run)
        return cls(student, device)

    def __call__(self, xyz: Array, intensity: Array) -> Array:
        """(N, C) float32 features of points (N, 3), (N,)."""
        output = run_student(self.student, xyz, intensity)
        return by_point(output.features, output)


class UntrainedNetwork(FrozenNetwork):
    """A student with random weights, batch norms fitted to sweeps."""

    def __init__(self, config: StudentConfig, classes: int, seed: int, device: str) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(Student(config, classes), device)

    def calibrate(self, sweeps: Sequence[tuple[Array, Array]]) -> None:
        """Set the statistics of every batch norm to their mean over the sweeps."""
        norms: list[Any] = [m for m in self.student.modules() if hasattr(m, "running_mean")]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
        self.student.train()
        for xyz, intensity in sweeps:
            self(xyz, intensity)
        self.student.eval()


def confusion_of(
    predict: Callable[[Array, Array], Array], scans: Iterable[Scan], classes: int
) -> Confusion:
    """Confusion over labeled scans; points out of range count as wrong.

    Args:
        predict: (N,) class ids of points (N, 3), (N,).
        scans: labeled scans, read once.
        classes: number C.
    """
    confusion = Confusion(classes)
    for scan in scans:
        confusion.update(predict(scan.xyz, scan.intensity), scan.truth)
        confusion.unpredicted += scan.missed
    return confusion


@dataclass
class ProbeResult:
    """One probe: the confusion of the test scans, and the fit's curve.

    Attributes:
        confusion: over the test points.
        curve: per round: iteration, loss, and mIoU on held-out fitting points.
        weight, bias: (D, C) and (C,) of the classifier, for features as they come.
    """

    confusion: Confusion
    curve: list[dict[str, float]]
    weight: Array
    bias: Array
    points: int = 0


def probe_features(
    features: Features,
    fit: Sequence[Scan],
    test: Iterable[Scan],
    classes: int,
    max_points: int = 400_000,
    seed: int = 0,
) -> ProbeResult:
    """Fit a linear classifier on features of one set of scans, measure it on another.

    Args:
        features: of points (N, 3), (N,).
        fit: labeled scans; points are drawn evenly beyond `max_points`.
        test: labeled scans, read once.
        classes: number C.
        max_points: points that are fitted to.
        seed: of the drawn points.

    Raises:
        InputError: no labeled point to fit to or to test on.
    """
    inputs, targets = gather(features, fit, max_points, seed)
    weight, bias, curve = fit_linear(inputs, targets, classes, seed)

    def predict(xyz: Array, intensity: Array) -> Array:
        found: Array = np.argmax(features(xyz, intensity) @ weight + bias, axis=1)
        return found

    confusion = confusion_of(predict, test, classes)
    if not confusion.points:
        raise InputError("the test scans have no labeled point of these classes")
    return ProbeResult(confusion, curve, weight, bias, len(targets))


def gather(
    features: Features, scans: Sequence[Scan], max_points: int, seed: int
) -> tuple[Array, Array]:
    """Features and classes of the labeled points of scans, or of an even share of them."""
    rng = np.random.default_rng(seed)
    total = sum(int((scan.truth != IGNORE).sum()) for scan in scans)
    if total == 0:
        raise InputError("the scans to fit to have no labeled point of these classes")
    share = min(1.0, max_points / total)
    inputs, targets = [], []
    for scan in scans:
        labeled = np.flatnonzero(scan.truth != IGNORE)
        drawn = np.sort(rng.choice(labeled, int(share * len(labeled)), replace=False))
        if len(drawn):
            inputs.append(features(scan.xyz, scan.intensity)[drawn])
            targets.append(scan.truth[drawn])
    return np.concatenate(inputs), np.concatenate(targets)


def fit_linear(
    inputs: Array, targets: Array, classes: int, seed: int = 0, decay: float = 1e-4
) -> tuple[Array, Array, list[dict[str, float]]]:
    """Multinomial logistic regression; classes weigh by inverse root frequency.

    Args:
        inputs: (N, D) features.
        targets: (N,) class ids.
        classes: number C.
        seed: of the points held out for the curve.
        decay: L2 penalty on the weights of standardized features.

    Returns:
        Weight (D, C) and bias (C,) for features as they come, and the curve.
    """
    held = np.random.default_rng(seed).random(len(targets)) < _HELD_OUT
    held &= len(targets) > 100
    balance = class_weights(np.bincount(targets[~held], minlength=classes), 0.5)
    curve: list[dict[str, float]] = []

    def note(loss: float, weight: Array, bias: Array) -> None:
        confusion = Confusion(classes)
        confusion.update((inputs[held] @ weight + bias).argmax(1), targets[held])
        miou = confusion.miou if confusion.points else 0.0
        iteration = len(curve) * _ITERATIONS
        curve.append({"iteration": iteration, "loss": loss, "held_out_miou": miou})

    weight, bias = logistic_regression(
        inputs[~held],
        targets[~held],
        balance,
        decay=decay,
        iterations=_ITERATIONS,
        rounds=_ROUNDS,
        after_round=note,
    )
    return weight, bias, curve


def untrained(config: StudentConfig, scans: Sequence[Scan], seed: int, device: str) -> Features:
    """The architecture with random weights and batch norms that have seen some scans."""
    network = UntrainedNetwork(config, 1, seed, device)
    chosen = np.linspace(0, len(scans) - 1, min(len(scans), _CALIBRATION_SCANS)).round()
    network.calibrate([(scans[int(i)].xyz, scans[int(i)].intensity) for i in chosen])
    return network


def probe(
    runs: Sequence[Path],
    fit: Sequence[Scan],
    test: Sequence[Scan],
    space: LabelSpace,
    device: str = "cpu",
    max_points: int = 400_000,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, list[ProbeResult]]:
    """Probe pretrained runs, as many untrained networks, and the raw inputs.

    Args:
        runs: checkpoints or run directories; several are seeds of one recipe.
        fit, test: labeled scans.
        space: what their classes mean.
        device: where networks run.
        max_points: points that are fitted to.
        progress: called with (probes done, probes in all).

    Returns:
        Results by method: "pretrained", "untrained" (one per run), "raw" (one).
    """
    results: dict[str, list[ProbeResult]] = {"pretrained": [], "untrained": [], "raw": []}
    total, classes = 2 * len(runs) + 1, len(space)

    def measure(method: str, features: Features, seed: int) -> None:
        results[method].append(probe_features(features, fit, test, classes, max_points, seed))
        progress(sum(map(len, results.values())), total)

    for seed, run in enumerate(runs):
        network = FrozenNetwork.load(run, device)
        measure("pretrained", network, seed)
        config = network.student.config
        measure("untrained", untrained(config, fit, seed, device), seed)
    measure("raw", raw_inputs, 0)
    return results


def summary(results: Mapping[str, Sequence[ProbeResult]], space: LabelSpace) -> dict[str, Any]:
    """Figures by method: means and deviations over the seeds, all in 0..1, and the gains."""
    methods = {name: _figures(list(found), space) for name, found in results.items()}
    content: dict[str, Any] = {"methods": methods}
    if "pretrained" in methods:
        mean = methods["pretrained"]["miou"]
        for other in ("untrained", "raw"):
            if other in methods:
                content[f"gain_over_{other}"] = mean - methods[other]["miou"]
    return content


def _figures(found: list[ProbeResult], space: LabelSpace) -> dict[str, Any]:
    figures = [Figures.of(f.confusion, space.names, merge_of(space)) for f in found]
    content: dict[str, Any] = {}
    for key in ("miou", "accuracy", "miou_merged_ground"):
        values = [getattr(f, key) for f in figures if getattr(f, key) is not None]
        content[key] = float(np.mean(values)) if values else None
        content[f"{key}_deviation"] = float(np.std(values)) if values else None
    total = sum((f.confusion for f in found), Confusion(len(space)))
    return {
        **content,
        "iou": Figures.of(total, space.names, None).iou,
        "confusion": total.matrix.tolist(),
        "unpredicted": total.unpredicted.tolist(),
        "fitted_points": found[0].points,
        "seeds": [
            {**f.model_dump(), "curve": r.curve} for f, r in zip(figures, found, strict=True)
        ],
    }
