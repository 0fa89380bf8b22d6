# SPDX-License-Identifier: Apache-2.0
"""Seen, unseen and harmonic mean IoU, and calibrated stacking, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pcseg_core.errors import InputError
from pcseg_core.metrics.confusion import Confusion
from pcseg_core.metrics.zero_shot import ZeroShotFigures, choose_gamma, harmonic_mean, stacked

UNSEEN = np.array([False, True, False, True])
NAMES = ("road", "car", "wall", "pole")


def confusion(pred: list[int], truth: list[int]) -> Confusion:
    found = Confusion(4)
    found.update(np.array(pred), np.array(truth))
    return found


def test_figures_by_hand() -> None:
    # road: 2 hits, 1 false; wall: 1 hit, 1 missed; car: 1 hit, 1 missed; pole does not occur.
    found = ZeroShotFigures.of(confusion([0, 0, 0, 1, 2, 3], [0, 0, 1, 1, 2, 2]), NAMES, UNSEEN)
    seen, unseen = (2 / 3 + 1 / 2) / 2, 1 / 2
    assert found.seen == pytest.approx(seen) and found.unseen == pytest.approx(unseen)
    assert found.hiou == pytest.approx(2 * seen * unseen / (seen + unseen))
    assert found.miou == pytest.approx((2 / 3 + 1 / 2 + 1 / 2) / 3)
    assert found.iou["pole"] == 0 and found.iou["car"] == pytest.approx(0.5)


def test_a_kind_that_does_not_occur_has_no_figure_and_nothing_found_has_zero() -> None:
    only_seen = ZeroShotFigures.of(confusion([0, 2], [0, 2]), NAMES, UNSEEN)
    assert (only_seen.seen, only_seen.unseen, only_seen.hiou) == (1.0, None, None)
    missed = ZeroShotFigures.of(confusion([0, 0], [0, 1]), NAMES, UNSEEN)
    assert missed.unseen == 0 and missed.hiou == 0
    assert harmonic_mean(0.0, 0.0) == 0 and harmonic_mean(0.2, 0.6) == pytest.approx(0.3)


def test_stacking_takes_gamma_off_the_seen_classes_alone() -> None:
    scores = np.array([[0.5, 0.3, 0.1, 0.0], [0.5, 0.1, 0.0, 0.2]])
    assert stacked(scores, UNSEEN, 0.0).tolist() == [0, 0]
    assert stacked(scores, UNSEEN, 0.25).tolist() == [1, 0]
    assert stacked(scores, UNSEEN, 0.35).tolist() == [1, 3]


def test_gamma_is_the_largest_that_seen_classes_can_afford() -> None:
    # Of ten road points, one flips to a car above 0.12 and another above 0.32.
    lead = np.array([0.12, 0.32, *[0.8] * 8])
    scores = np.zeros((11, 4))
    scores[:10, 0] = lead
    scores[10] = [0, 0.2, 0.92, 0]  # wall, safe
    truth = np.array([0] * 10 + [2])
    grid = np.arange(0, 1.0, 0.05)
    # IoU of road 9/10 and of wall 1: a loss of 0.05 is all that the first flip costs.
    assert choose_gamma(scores, truth, UNSEEN, grid, 0.06) == pytest.approx(0.3)
    assert choose_gamma(scores, truth, UNSEEN, grid, 0.01) == pytest.approx(0.1)
    assert choose_gamma(scores, truth, UNSEEN, grid, 0.5) == pytest.approx(0.7)


def test_gamma_never_looks_at_unseen_classes() -> None:
    rng = np.random.default_rng(0)
    scores, truth = rng.random((300, 4)), rng.integers(-1, 4, 300)
    grid = np.arange(0, 1, 0.02)
    before = choose_gamma(scores, truth, UNSEEN, grid, 0.02)
    hidden = (truth < 0) | UNSEEN[truth]
    scores[hidden] = rng.random((hidden.sum(), 4)) * 9
    assert choose_gamma(scores, np.where(hidden, -1, truth), UNSEEN, grid, 0.02) == before
    assert choose_gamma(scores, truth, UNSEEN, grid, 0.02) == before
    with pytest.raises(InputError, match="no held-out point"):
        choose_gamma(scores[:2], np.array([1, -1]), UNSEEN, grid, 0.02)
