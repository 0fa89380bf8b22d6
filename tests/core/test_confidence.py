# SPDX-License-Identifier: Apache-2.0
"""Calibrated confidence: temperatures are recovered, and labels do not change."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pcseg_core.checkpoint import FILE_NAME, load_checkpoint, load_text, save_checkpoint
from pcseg_core.cloud import PointCloud
from pcseg_core.confidence import UNSURE, ConfidenceScaling, LabeledLogits, entropy, fit_scaling
from pcseg_core.errors import InputError
from pcseg_core.labels import IGNORE
from pcseg_core.online.segmenter import Segmenter
from tests.small_runs import STREET, write_run, write_word_run

SCALING = ConfidenceScaling(near=0.5, far=3.0, range_m=20.0, unsure=1.5)


def drawn(
    temperature: np.ndarray | float, factor: float = 1.0, count: int = 20_000
) -> LabeledLogits:
    """Logits with labels drawn from their softmax at a temperature."""
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(count, 4))
    unsure = entropy(torch.from_numpy(logits).softmax(1)).numpy() > UNSURE
    divisor = temperature * np.where(unsure, factor, 1)
    noise = rng.gumbel(size=logits.shape)
    labels = (logits / np.reshape(divisor, (-1, 1)) + noise).argmax(1)
    return LabeledLogits(logits.astype(np.float32), ranges(count), labels)


def ranges(count: int = 20_000) -> np.ndarray:
    return np.random.default_rng(1).uniform(0, 80, count).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.6, 2.5])
def test_a_known_temperature_is_recovered(temperature: float) -> None:
    found = fit_scaling(drawn(temperature), 80.0)
    assert (found.near, found.far) == pytest.approx((temperature, temperature), rel=0.07)
    assert found.unsure == 1.0


def test_temperatures_that_grow_with_the_range_are_recovered() -> None:
    found = fit_scaling(drawn(0.8 + 2 * ranges() / 80), 80.0)
    assert (found.near, found.far) == pytest.approx((0.8, 2.8), rel=0.1)
    assert found.unsure == 1.0


def test_a_temperature_of_points_with_a_high_entropy_is_recovered() -> None:
    found = fit_scaling(drawn(1.2, factor=2.0), 80.0)
    assert (found.near, found.far, found.unsure) == pytest.approx((1.2, 1.2, 2.0), rel=0.1)


def test_a_lower_bound_keeps_the_confidence_from_rising() -> None:
    found = fit_scaling(drawn(0.5), 80.0, least=1.0)
    assert (found.near, found.far, found.unsure) == (1.0, 1.0, 1.0)


def test_entropy_of_certain_and_equal_classes() -> None:
    assert entropy(torch.tensor([[1.0, 0, 0], [1 / 3] * 3])).tolist() == pytest.approx([0, 1])


def test_rows_are_divided_by_their_temperature() -> None:
    logits = torch.tensor([[9.0, 0, 0], [9.0, 0, 0], [0.3, 0.2, 0], [float("nan"), 0, 0]])
    scaled = SCALING.apply(logits, torch.tensor([0.0, 10.0, 90.0, 0.0]))
    assert (logits[:3, 0] / scaled[:3, 0]).tolist() == pytest.approx([0.5, 1.75, 4.5])
    assert scaled[3, 0].isnan()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run without a scaling, and its copy with one."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("plain", "scaled"):
        (folder / name).mkdir()
    plain = write_run(folder / "plain", classes=STREET)
    add_scaling(plain, folder / "scaled")
    return plain, folder / "scaled"


def add_scaling(run: Path, folder: Path) -> None:
    state, meta = load_checkpoint(run)
    meta = meta.model_copy(update={"confidence": SCALING})
    save_checkpoint(folder / FILE_NAME, state, meta, load_text(run))


def cloud() -> PointCloud:
    rng = np.random.default_rng(0)
    xyz = rng.uniform(-15, 15, (2000, 3)).astype(np.float32)
    xyz[7] = np.nan
    return PointCloud(xyz, rng.random(2000, np.float32))


@pytest.mark.parametrize(
    ("backend", "precision"), [("torch", "fp32"), ("native", "fp32"), ("native", "bf16")]
)
def test_the_confidence_changes_and_the_labels_do_not(
    runs: tuple[Path, Path], backend: str, precision: str
) -> None:
    plain, scaled = (Segmenter.load(run, "cpu", precision, backend) for run in runs)
    scaled.keep_uncalibrated = True
    sweep = cloud()
    before, after = plain.segment(sweep, True), scaled.segment(sweep, True)
    assert np.array_equal(before.labels, after.labels)
    assert before.uncalibrated is None and after.uncalibrated is not None
    assert np.array_equal(after.uncalibrated, before.confidence)
    # The logits are known up to a constant; the range is that of the voxel's farthest point.
    assert before.probabilities is not None and after.probabilities is not None
    used = before.labels >= 0
    logits = torch.from_numpy(before.probabilities[used]).log()
    distance = torch.from_numpy(np.linalg.norm(sweep.xyz[used], axis=1))
    expected = SCALING.apply(logits, distance).softmax(1).numpy()
    assert np.abs(after.probabilities[used] - expected).max() < 0.05
    assert np.abs(after.probabilities[used] - before.probabilities[used]).max() > 0.1
    assert after.probabilities[used].sum(1) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(after.confidence, after.probabilities.max(1), atol=1e-6)


def test_a_checkpoint_written_before_has_no_scaling(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    with safe_open(str(runs[1] / FILE_NAME), framework="pt") as handle:
        header = json.loads(handle.metadata()["pcseg"])
        state = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    assert header.pop("confidence")["near"] == 0.5
    old = tmp_path / FILE_NAME
    save_file(state, str(old), metadata={"pcseg": json.dumps(header)})
    results = [Segmenter.load(path, "cpu").segment(cloud()) for path in (old, runs[0])]
    assert np.array_equal(results[0].confidence, results[1].confidence)


def test_prompts_are_not_scaled(tmp_path: Path) -> None:
    (tmp_path / "scaled").mkdir()
    add_scaling(write_word_run(tmp_path), tmp_path / "scaled")
    found = []
    for run in (tmp_path, tmp_path / "scaled"):
        segmenter = Segmenter.load(run, "cpu")
        segmenter.set_prompts(["road", "vehicle"])
        found.append(segmenter.segment(cloud()).confidence)
    assert np.array_equal(*found)


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_points_of_a_high_entropy_become_unlabeled(runs: tuple[Path, Path], backend: str) -> None:
    every = Segmenter.load(runs[0], "cpu", "fp32", backend).segment(cloud(), True)
    assert every.probabilities is not None
    found = entropy(torch.from_numpy(every.probabilities)).numpy()
    limit = float(np.median(found))
    segmenter = Segmenter.load(runs[0], "cpu", "fp32", backend, max_entropy=limit)
    result = segmenter.segment(cloud(), True)
    clear = np.abs(found - limit) > 1e-4
    unknown = found > limit
    assert 0.3 < unknown.mean() < 0.7
    kept = every.labels[clear & ~unknown]
    assert np.array_equal(result.labels[clear & ~unknown], kept)
    assert (result.labels[clear & unknown] == IGNORE).all()
    assert not result.confidence[clear & unknown].any()
    assert result.probabilities is not None and not result.probabilities[clear & unknown].any()
    assert result.not_finite == 0
    assert segmenter.segment(cloud()).probabilities is None


@pytest.mark.parametrize("limit", [0.0, 1.1, float("nan")])
def test_limits_that_label_nothing_are_refused(limit: float) -> None:
    with pytest.raises(InputError, match="max_entropy .*: expected above 0"):
        Segmenter.load("bundled", "cpu", max_entropy=limit)
