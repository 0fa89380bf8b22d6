# SPDX-License-Identifier: Apache-2.0
"""Losses against values computed by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pcseg_core.distill.losses import feature_regression, lovasz_softmax, weighted_cross_entropy
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


def test_cross_entropy_weighs_confidence_and_class() -> None:
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3.0)], [5.0, 0.0]])
    labels = torch.tensor([0, 0, IGNORE])
    confidence = torch.tensor([1.0, 0.5, 1.0])
    weights = torch.tensor([2.0, 7.0])
    expected = (2 * math.log(2) + 1 * math.log(4)) / 3
    loss = weighted_cross_entropy(logits, labels, confidence, weights)
    assert float(loss) == pytest.approx(expected)


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
        weighted_cross_entropy(logits, labels, torch.ones(3), torch.ones(2))
        + lovasz_softmax(logits.softmax(1), labels)
        + feature_regression(logits[:0], logits[:0].detach())
    )
    total.backward()
    assert float(total) == 0 and torch.equal(logits.grad, torch.zeros(3, 2))
