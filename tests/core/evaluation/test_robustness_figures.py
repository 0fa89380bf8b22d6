# SPDX-License-Identifier: Apache-2.0
"""mCE, mRR and the ranking of errors, against published tables and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pcseg_core.errors import InputError
from pcseg_core.metrics.robustness import (
    ErrorRanking,
    corruption_errors,
    mean_of,
    normalized_entropy,
    resilience_rates,
)

NAMES = ("fog", "wet", "snow", "motion", "beam", "crosstalk", "echo", "sensor")

# mIoU of Kong et al., "Robo3D", ICCV 2023: SemanticKITTI-C at three severities, nuScenes-C as the
# mean over the severities.
KITTI_MINKUNET18 = (
    (61.71, 58.32, 47.59),
    (58.38, 52.38, 51.21),
    (55.50, 53.70, 50.65),
    (42.78, 31.62, 24.35),
    (60.70, 56.78, 51.47),
    (59.87, 58.47, 56.68),
    (57.89, 54.68, 50.72),
    (57.53, 52.08, 28.53),
)
NUSCENES_MINKUNET18 = (53.64, 73.91, 40.35, 73.39, 68.54, 26.58, 63.83, 50.95)
NUSCENES_MINKUNET34 = (56.91, 74.93, 37.50, 75.24, 70.10, 29.32, 64.96, 52.96)
NUSCENES_GFNET = (69.59, 75.52, 71.83, 59.43, 64.47, 66.78, 61.86, 42.30)


def severities(rows: tuple[tuple[float, ...], ...]) -> dict[str, list[float]]:
    return {name: [value / 100 for value in row] for name, row in zip(NAMES, rows, strict=True)}


def means(row: tuple[float, ...]) -> dict[str, list[float]]:
    return severities(tuple((value,) for value in row))


def test_the_baseline_has_an_error_of_100_percent() -> None:
    figures = severities(KITTI_MINKUNET18)
    assert corruption_errors(figures, figures) == dict.fromkeys(NAMES, 1.0)
    assert mean_of(corruption_errors(figures, figures)) == 1.0


def test_published_resilience_of_the_baselines() -> None:
    kitti = resilience_rates(severities(KITTI_MINKUNET18), 0.6276)
    assert mean_of(kitti) == pytest.approx(0.8190, abs=5e-5)
    nuscenes = resilience_rates(means(NUSCENES_MINKUNET18), 0.7576)
    assert mean_of(nuscenes) == pytest.approx(0.7444, abs=5e-5)


@pytest.mark.parametrize(
    ("row", "clean", "mce", "mrr"),
    [(NUSCENES_MINKUNET34, 76.90, 96.37, 75.08), (NUSCENES_GFNET, 76.79, 92.55, 83.31)],
)
def test_published_rows(row: tuple[float, ...], clean: float, mce: float, mrr: float) -> None:
    errors = corruption_errors(means(row), means(NUSCENES_MINKUNET18))
    assert 100 * (mean_of(errors) or 0) == pytest.approx(mce, abs=0.01)
    rates = resilience_rates(means(row), clean / 100)
    assert 100 * (mean_of(rates) or 0) == pytest.approx(mrr, abs=0.01)


def test_figures_that_do_not_exist() -> None:
    assert resilience_rates({"fog": [0.0]}, 0.0) == {}
    assert mean_of({}) is None
    perfect = {"fog": [1.0], "snow": [0.5]}
    assert corruption_errors(perfect, perfect) == {"snow": 1.0}
    with pytest.raises(InputError, match="baseline: no figures of snow"):
        corruption_errors(perfect, {"fog": [0.5]})
    with pytest.raises(InputError, match="baseline: 2 severities of fog; expected 1"):
        corruption_errors({"fog": [0.5]}, {"fog": [0.5, 0.4]})


def test_the_ranking_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 64, 500) / 64  # many ties
    wrong = rng.random(500) < 0.1 + 0.5 * scores
    ranking = ErrorRanking()
    for part in (slice(0, 200), slice(200, 500)):
        ranking.update(scores[part], wrong[part])
    bad, good = scores[wrong][:, None], scores[~wrong][None]
    expected = np.mean((bad > good) + 0.5 * (bad == good))
    assert ranking.area == pytest.approx(expected, abs=1e-12)
    assert ErrorRanking().area is None


def test_entropy_of_certain_and_of_equal_classes() -> None:
    rows = np.array([[1, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0]], np.float32)
    np.testing.assert_allclose(normalized_entropy(rows), [0, 1, 0.5], atol=1e-7)
