# SPDX-License-Identifier: Apache-2.0
"""Baselines: logistic regression against known solutions, and fits to a run's pseudo labels."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from pcseg_core.cloud import PointCloud
from pcseg_core.distill.losses import LabelLossConfig
from pcseg_core.errors import InputError
from pcseg_core.evaluation.baselines import PseudoLabels, fit_baselines
from pcseg_core.learning.linear import logistic_regression
from pcseg_core.learning.probe import UntrainedNetwork
from pcseg_core.models.student import StudentConfig

ROAD, STRUCTURE, VEHICLE, POLE = 0, 2, 5, 7


def test_logistic_regression_agrees_with_another_solver() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400)
    features = rng.normal(size=(400, 2)) + np.array([[0, 0], [1.5, 0], [0, 40]])[labels]
    features[:, 1] = features[:, 1] * 1000 + 5e4  # scale and offset must not matter
    weight, bias = logistic_regression(features, labels, np.ones(3), decay=1e-4)
    standard = (features - features.mean(0)) / features.std(0)
    # scikit-learn minimizes sum(loss) + |w|^2 / (2 C); ours mean(loss) + decay |w|^2
    reference = LogisticRegression(C=1 / (2 * 1e-4 * 400), tol=1e-8, max_iter=5000)
    expected = reference.fit(standard, labels).predict_proba(standard)
    logits = features @ weight.astype(np.float64) + bias
    ours = np.exp(logits - logits.max(1, keepdims=True))
    assert ours / ours.sum(1, keepdims=True) == pytest.approx(expected, abs=5e-3)


def test_class_weights_move_the_border_toward_the_common_class() -> None:
    rng = np.random.default_rng(1)
    labels = (np.arange(1000) < 50).astype(int)
    features = rng.normal(size=(1000, 1)) + 2 * labels[:, None]
    shares = []
    for weights in (np.ones(2), np.array([1.0, 19.0])):
        weight, bias = logistic_regression(features, labels, weights)
        shares.append(np.mean(np.argmax(features @ weight + bias, 1)))
    assert shares[0] < 0.05 < 0.12 < shares[1]


def test_a_constant_column_and_an_absent_class_are_harmless() -> None:
    features = np.column_stack([np.arange(10.0), np.full(10, 7.0)])
    weight, bias = logistic_regression(features, (np.arange(10) > 4).astype(int), np.ones(3))
    assert np.isfinite(weight).all()
    assert np.argmax(features @ weight + bias, 1).tolist() == [0] * 5 + [1] * 5


def test_pseudo_labels_below_the_confidence_are_left_out(tiny_run: Path) -> None:
    assert (PseudoLabels(tiny_run).labels(0)[:40] == POLE).all()
    confident = PseudoLabels(tiny_run, 0.6)
    assert (confident.labels(0)[:40] == -1).all()
    assert confident.counts(8)[:, POLE].tolist() == [0, 0, 0]
    quota = PseudoLabels.trained_on(tiny_run, LabelLossConfig(class_quota=0.5))
    assert (quota.labels(0)[:40] == POLE).all()


def test_baselines_of_a_run(tiny_run: Path) -> None:
    baselines = fit_baselines(tiny_run)
    road, wall, car = (2.0, 0.0, -1.7), (3.0, 6.0, 1.5), (7.0, 2.0, -0.7)
    xyz = np.array([road, wall, car, (np.nan, 0, 0), (1e6, 0, 0)], np.float32)
    cloud = PointCloud(xyz, intensity=np.array([0.2, 0.5, 0.8, 0.2, 0.2], np.float32))
    assert baselines["linear_raw"](cloud).tolist() == [ROAD, STRUCTURE, VEHICLE, -1, -1]
    majority = baselines["majority"](cloud)
    assert len(majority) == 5
    assert len(set(majority.tolist())) == 1
    assert majority[0] == np.argmax(PseudoLabels(tiny_run, 0.6).counts(8).sum(0))
    untrained = baselines["linear_untrained"](cloud)
    assert untrained[3:].tolist() == [-1, -1]
    assert (untrained[:3] >= 0).all()


def test_the_untrained_baseline_learns_something_and_repeats(tiny_run: Path) -> None:
    pseudo = PseudoLabels(tiny_run, 0.6)
    xyz, intensity = pseudo.points(2)
    labels = pseudo.labels(2)
    first, second = (
        fit_baselines(tiny_run)["linear_untrained"](PointCloud(xyz, intensity=intensity))
        for _ in range(2)
    )
    assert np.array_equal(first, second)
    known = labels >= 0
    assert np.mean(first[known] == labels[known]) > 0.6  # chance is 0.33


def test_calibration_sets_the_batch_norms_and_not_the_random_state(tiny_run: Path) -> None:
    import torch

    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    network = UntrainedNetwork(StudentConfig(depth=14, width=0.25, voxel_size_m=0.5), 8, 0, "cpu")
    network.calibrate([PseudoLabels(tiny_run).points(0)])
    assert torch.equal(before, torch.random.get_rng_state())
    norm = network.student.network.stem[1]
    assert not network.student.training
    assert norm.running_mean.abs().max() > 1e-3
    xyz, intensity = PseudoLabels(tiny_run).points(0)
    features = network(xyz, intensity)
    assert 0.1 < features.std() < 10  # normalized, neither vanished nor exploded


def test_a_run_without_pseudo_labels_says_so(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_run / "checkpoint.safetensors", tmp_path)
    with pytest.raises(InputError, match="no pseudo labels in"):
        fit_baselines(tmp_path)


def test_a_damaged_pseudo_label_file_is_named(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    (tmp_path / "run" / "pseudo_labels" / "00001.npz").write_bytes(b"PK\x03\x04 nonsense")
    with pytest.raises(InputError, match=r"00001\.npz"):
        fit_baselines(tmp_path / "run")
