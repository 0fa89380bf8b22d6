# SPDX-License-Identifier: Apache-2.0
"""Losses against values computed by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pcseg_core.distill.losses import (
    LabelLossConfig,
    confident_labels,
    feature_regression,
    label_losses,
    lovasz_softmax,
    range_weights,
    required_confidence,
    weighted_cross_entropy,
)
from pcseg_core.labels import IGNORE


def jaccard_loss(predicted: torch.Tensor, labels: torch.Tensor) -> float:
    """1 - IoU, averaged over the classes that are present."""
    losses = []
    for c in labels.unique():
        intersection = ((predicted == c) & (labels == c)).sum()
        union = ((predicted == c) | (labels == c)).sum()
        losses.append(1 - float(intersection) / float(union))
    return sum(losses) / len(losses)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_lovasz_of_hard_predictions_is_the_jaccard_loss(pairs: list[tuple[int, int]]) -> None:
    predicted = torch.tensor([p for p, _ in pairs])
    labels = torch.tensor([label for _, label in pairs])
    hard = torch.nn.functional.one_hot(predicted, 4).double()
    assert float(lovasz_softmax(hard, labels)) == pytest.approx(jaccard_loss(predicted, labels))


def test_lovasz_between_the_corners_by_hand() -> None:
    # Class 0 is true of the first point only. Errors sorted: 0.6 (point 1, false), 0.4 (point 0,
    # true). Jaccard losses of the growing error set: {1}: 1 - 1/2; {1, 0}: 1. Slopes 1/2, 1/2.
    # Class 1: errors 0.6 (point 1, true), 0.4 (point 0, false): losses 1, 1. Slopes 1, 0.
    probabilities = torch.tensor([[0.6, 0.4], [0.6, 0.4]])
    labels = torch.tensor([0, 1])
    expected = ((0.6 * 0.5 + 0.4 * 0.5) + 0.6) / 2
    assert float(lovasz_softmax(probabilities, labels)) == pytest.approx(expected)


PLAIN = LabelLossConfig()


def test_cross_entropy_is_a_weighted_mean_over_the_labels() -> None:
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3.0)], [5.0, 0.0]])
    labels = torch.tensor([0, 0, IGNORE])
    expected = (2 * math.log(2) + 1 * math.log(4)) / 3
    loss = weighted_cross_entropy(logits, labels, torch.tensor([2.0, 1.0, 9.0]), PLAIN)
    assert float(loss) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, math.log(4)),
        ({"generalized": 0.5}, (1 - 0.25**0.5) / 0.5),
        ({"generalized": 1.0}, 0.75),
        ({"reverse": 0.1}, math.log(4) + 0.1 * 4 * 0.75),
        ({"bootstrap": 0.2}, math.log(4) - 0.2 * 0.75 * math.log(3)),
        ({"generalized": 1.0, "reverse": 1.0}, 0.75 + 3.0),
    ],
)
def test_losses_of_noisy_labels_by_hand(options: dict[str, float], expected: float) -> None:
    logits = torch.tensor([[0.0, math.log(3.0)]])  # probabilities 1/4 and 3/4
    losses = label_losses(logits, torch.tensor([0]), LabelLossConfig(**options))
    assert losses.tolist() == pytest.approx([expected])


def test_noise_aware_losses_learn_less_from_unlikely_labels() -> None:
    """The gradient of the cross-entropy grows as the label gets unlikely; these bound or cut it."""

    def gradient(**options: float) -> float:
        logits = torch.tensor([[0.0, 8.0]], requires_grad=True)
        label_losses(logits, torch.tensor([0]), LabelLossConfig(**options)).sum().backward()
        assert logits.grad is not None
        return float(logits.grad[0, 0].abs())

    assert gradient(generalized=0.7) < 0.01 < 0.99 < gradient()
    assert gradient(bootstrap=0.3) == pytest.approx(0.7, abs=0.01)


def test_no_class_loses_more_than_its_quota() -> None:
    """Two classes with confidences 0 to 0.999 and 0 to 0.4995 in even steps, and a weak third."""
    label = np.repeat([0, 1, 3, IGNORE], [1000, 1000, 100, 50]).astype(np.int16)
    steps = np.arange(1000) / 1000
    parts = [steps, steps / 2, np.full(100, 0.1), np.full(50, 0.9)]
    confidence = np.concatenate(parts).astype(np.float32)
    halves = [(label[k::2], confidence[k::2]) for k in range(2)]
    config = LabelLossConfig(min_confidence=0.6, class_quota=0.5, least_confidence=0.2)
    required = np.asarray(required_confidence(halves, config))
    assert required[:4] == pytest.approx([0.5, 0.25, 0.6, 0.2], abs=1e-3)
    found = confident_labels(label, confidence, required)
    kept = np.bincount(found[found != IGNORE], minlength=4)
    assert 500 <= kept[0] <= 502 and 500 <= kept[1] <= 502 and kept[2] == kept[3] == 0
    strict = config.model_copy(update={"min_confidence": 0.3})  # never above it
    assert np.max(required_confidence(halves, strict)) == 0.3
    assert required_confidence(halves, LabelLossConfig()) == 0.6


def test_ranges_of_a_class_weigh_the_same_in_sum() -> None:
    counts = np.array([[900, 100, 0], [0, 0, 0]])
    weights = range_weights(counts, 1.0)
    assert weights[0, 0] * 900 == pytest.approx(weights[0, 1] * 100)
    assert (weights[0] * counts[0]).sum() == pytest.approx(1000)
    assert (weights[1] == 1).all() and (range_weights(counts, 0.0) == 1).all()


def test_regression_is_the_distance_of_unit_vectors() -> None:
    student = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[5.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    loss = feature_regression(student, teacher)
    assert float(loss) == pytest.approx((0 + math.sqrt(2) + 2) / 3, abs=1e-5)
    loss.backward()
    assert torch.isfinite(student.grad).all()


def test_nothing_labeled_is_zero_with_a_gradient() -> None:
    logits = torch.zeros(3, 2, requires_grad=True)
    labels = torch.full((3,), IGNORE)
    total = (
        weighted_cross_entropy(logits, labels, torch.ones(3), PLAIN)
        + lovasz_softmax(logits.softmax(1), labels)
        + feature_regression(logits[:0], logits[:0].detach())
    )
    total.backward()
    assert float(total) == 0 and torch.equal(logits.grad, torch.zeros(3, 2))
