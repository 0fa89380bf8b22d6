# SPDX-License-Identifier: Apache-2.0
"""Contrastive losses against values computed by hand, and what they must not depend on."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pcseg_core.distill.contrast import (
    balanced_anchors,
    false_negatives,
    info_nce,
    point_to_segment,
    segment_means,
    superpixel_contrast,
    temporal_consistency,
)
from pcseg_core.labels import IGNORE


def unit(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, columns, generator=generator).double(), dim=1)


def test_segment_means_by_hand_with_ignored_rows_and_empty_segments() -> None:
    features = torch.tensor([[1.0, 0.0], [3.0, 2.0], [9.0, 9.0], [5.0, 5.0]], requires_grad=True)
    means, sizes = segment_means(features, torch.tensor([2, 2, IGNORE, 0]), 4)
    assert means.tolist() == [[5, 5], [0, 0], [2, 1], [0, 0]] and sizes.tolist() == [1, 0, 2, 0]
    means.sum().backward()
    assert features.grad.tolist() == [[0.5, 0.5], [0.5, 0.5], [0, 0], [1, 1]]


def test_contrast_by_hand() -> None:
    points = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    pixels = torch.tensor([[0.5, 0.0], [1.0, 1.0]])
    # Logits over temperature 0.5: row 0: 1, 2; row 1: 0, 2.
    expected = (math.log(math.exp(1) + math.exp(2)) - 1 + math.log(1 + math.exp(2)) - 2) / 2
    assert float(superpixel_contrast(points, pixels, 0.5)) == pytest.approx(expected)


def test_excluded_negatives_leave_the_denominator_altogether() -> None:
    points, pixels = unit(3, 4), unit(3, 4, 1)
    everything = ~torch.eye(3, dtype=torch.bool)
    # Alone in its own denominator: exactly 0. A zeroed logit would leave ln(1 + ...) > 0.
    alone = superpixel_contrast(points, pixels, 0.07, everything)
    assert float(alone) == pytest.approx(0, abs=1e-9)
    one = torch.zeros(3, 3, dtype=torch.bool)
    one[0, 2] = one[0, 0] = True  # the own key always counts
    logits = points @ pixels.T / 0.07
    expected = F.cross_entropy(logits[1:], torch.tensor([1, 2]), reduction="sum")
    expected = expected + F.cross_entropy(logits[:1, :2], torch.tensor([0]))
    loss = superpixel_contrast(points, pixels, 0.07, one)
    assert float(loss) == pytest.approx(float(expected) / 3)


@pytest.mark.parametrize("segments", [7, 300])
def test_an_untrained_network_starts_at_the_logarithm_of_the_number(segments: int) -> None:
    # A random start says nothing about pairs: similarities without information on the partner.
    points = F.normalize(torch.ones(segments, 64).double() + 0.01 * unit(segments, 64), dim=1)
    loss = superpixel_contrast(points, unit(segments, 64, 5), 1.0)
    assert float(loss) == pytest.approx(math.log(segments), abs=0.02)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(0, 2**31 - 1))
def test_relabeling_segments_and_shuffling_points_change_nothing(count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = 40
    features, pixels = unit(rows, 5, seed), unit(rows, 5, seed + 1)
    ids = torch.randint(-1, count, (rows,), generator=generator)
    names, order = torch.randperm(count, generator=generator), torch.randperm(rows)

    def loss(features: torch.Tensor, pixels: torch.Tensor, ids: torch.Tensor) -> float:
        points, sizes = segment_means(features, ids, count)
        teacher, _ = segment_means(pixels, ids, count)
        kept = sizes > 0
        mask = false_negatives(teacher[kept], 0.7)
        weights = balanced_anchors(teacher[kept]) if kept.sum() > 1 else None
        return float(superpixel_contrast(points[kept], teacher[kept], 0.07, mask, weights))

    renamed = torch.where(ids == IGNORE, IGNORE, names[ids])
    expected = pytest.approx(loss(features, pixels, ids), abs=1e-9)
    assert loss(features[order], pixels[order], renamed[order]) == expected


def test_several_right_keys_share_the_loss_and_are_never_excluded() -> None:
    points, pixels = unit(3, 4), unit(3, 4, 1)
    alike = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 0]]).bool()
    logs = (points @ pixels.T / 0.07).log_softmax(1)
    expected = -((logs[0, 0] + logs[0, 1] + logs[1, 0] + logs[1, 1]) / 2 + logs[2, 2]) / 3
    assert float(superpixel_contrast(points, pixels, positives=alike)) == pytest.approx(
        float(expected)
    )
    # Excluding what is right changes nothing; excluding all others leaves the two in row 0.
    assert float(superpixel_contrast(points, pixels, excluded=alike, positives=alike)) == (
        pytest.approx(float(expected))
    )
    rest = ~torch.eye(3, dtype=torch.bool)
    two = (points @ pixels.T / 0.07)[:2, :2].log_softmax(1)
    loss = superpixel_contrast(points, pixels, excluded=rest, positives=alike)
    assert float(loss) == pytest.approx(-float(two.sum()) / 2 / 3)


def test_false_negatives_by_similarity_class_and_place() -> None:
    teacher = torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0], [0.0, -1.0]])
    alike = false_negatives(teacher, 0.8)
    assert alike[0, 1] and alike[1, 0] and not alike[0, 2] and not alike[2, 3]
    classes = torch.tensor([3, IGNORE, IGNORE, 3])
    by_class = false_negatives(teacher, None, classes)
    assert by_class[0, 3] and not by_class[1, 2] and not by_class[0, 1]
    sweeps, places = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 0, 0, 1])
    by_place = false_negatives(teacher, None, None, sweeps, places)
    assert by_place[0, 2] and by_place[2, 1] and not by_place[0, 1] and not by_place[2, 3]


def test_rare_segments_weigh_more() -> None:
    teacher = torch.cat([torch.tensor([[1.0, 0.0]]).repeat(9, 1), torch.tensor([[-1.0, 0.0]])])
    weights = balanced_anchors(teacher)
    assert float(weights[9] / weights[0]) == pytest.approx(9)
    assert float(weights.mean()) == pytest.approx(1)


def test_point_to_segment_counts_segments_not_points() -> None:
    centers = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    segments = torch.tensor([0, 0, 0, 1])
    expected = (math.log(1 + math.exp(-1)) + math.log(2)) / 2
    assert float(point_to_segment(features, segments, centers, 1.0)) == pytest.approx(expected)


def test_temporal_consistency_uses_shared_segments_in_both_directions() -> None:
    now = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.3, 0.3]])
    then = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.7, 0.7]])
    # Segment 5 is only now, 1 only then; 0 and 2 are in both.
    ids_now, ids_then = torch.tensor([0, 2, 5]), torch.tensor([2, 0, 1])
    loss = temporal_consistency((now, ids_now), (then, ids_then), 6, 1.0)
    assert float(loss) == pytest.approx(2 * math.log(1 + math.exp(-1)))
    far = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    ids = torch.tensor([0, 2])
    one_way = math.log(2)  # both means alike: no telling
    other = -1 + math.log(math.exp(1) + 1), -0 + math.log(math.exp(1) + 1)
    expected = one_way + sum(other) / 2
    loss = temporal_consistency((now[:2], ids), (far, ids), 3, 1.0)
    assert float(loss) == pytest.approx(expected)


def test_nothing_to_contrast_is_zero_with_a_gradient() -> None:
    features = torch.zeros(3, 2, requires_grad=True)
    none = torch.full((3,), IGNORE)
    total = temporal_consistency((features, none), (features, none), 4) + info_nce(
        features[:0], features[:0], 0.1
    )
    total.backward()
    assert total.item() == 0 and torch.equal(features.grad, torch.zeros(3, 2))
