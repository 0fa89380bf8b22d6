# SPDX-License-Identifier: Apache-2.0
"""The two terms of feature alignment against values computed by hand."""

import math

import pytest
import torch

from pcseg_core.distill.alignment import AlignmentConfig, global_alignment, local_alignment
from pcseg_core.labels import IGNORE
from pcseg_core.learning.objectives.alignment import Alignment


def test_global_alignment_by_hand() -> None:
    # Class 0: points along x and y, mean along the diagonal; class 2: a point along x. Class 1 and
    # the ignored pair take no part, whatever their features.
    points = torch.tensor([[5.0, 0.0], [0.0, 0.1], [2.0, 0.0], [-7.0, 3.0]])
    pixels = torch.tensor([[0.0, 1.0], [0.0, 3.0], [4.0, 0.0], [1.0, 1.0]])
    labels = torch.tensor([0, 0, 2, IGNORE])
    # <P0,Q0> = <P0,Q2> = sqrt(1/2); <P2,Q0> = 0, <P2,Q2> = 1; temperature 0.5.
    expected = (math.log(2) + math.log(math.exp(0) + math.exp(2)) - 2) / 2
    assert float(global_alignment(points, pixels, labels, 0.5)) == pytest.approx(expected)


def test_classes_weigh_alike_whatever_their_number_of_points() -> None:
    generator = torch.Generator().manual_seed(0)
    points, pixels = torch.randn(2, 4, generator=generator), torch.randn(2, 4, generator=generator)
    few = global_alignment(points, pixels, torch.tensor([0, 1]))
    index = torch.tensor([0] * 50 + [1])
    many = global_alignment(points[index], pixels[index], index)
    assert float(many) == pytest.approx(float(few), abs=1e-5)


def test_local_alignment_by_hand() -> None:
    points = torch.tensor([[2.0, 0.0], [0.0, 9.0], [0.0, 1.0], [1.0, 0.0]])
    patches = torch.tensor([0, 2, 2, IGNORE])
    patch_pixels = torch.tensor([[3.0, 0.0], [1.0, 1.0], [0.0, -1.0]])
    # Patch 1 has no points. <u0,v0> = 1, <u0,v2> = 0; <u2,v0> = 0, <u2,v2> = -1.
    expected = (math.log(math.e + 1) - 1 + math.log(1 + math.exp(-1)) + 1) / 2
    assert float(local_alignment(points, patch_pixels, patches, 1.0)) == pytest.approx(expected)
    # Patch 0 has one point only: patch 2 stands alone and has no negative left.
    assert float(local_alignment(points, patch_pixels, patches, 1.0, min_points=2)) == 0


def test_excluded_patches_are_no_negatives() -> None:
    points, patch_pixels = torch.eye(3), torch.ones(3, 3)
    patches = torch.arange(3)
    assert float(local_alignment(points, patch_pixels, patches)) == pytest.approx(math.log(3))
    excluded = torch.zeros(3, 3, dtype=torch.bool)
    excluded[0, 1] = excluded[1, 0] = True
    found = float(local_alignment(points, patch_pixels, patches, excluded=excluded))
    assert found == pytest.approx((2 * math.log(2) + math.log(3)) / 3)


def test_nothing_to_align_leaves_a_gradient_path() -> None:
    points = torch.randn(4, 3, requires_grad=True)
    none = torch.full((4,), IGNORE)
    loss = global_alignment(points, torch.randn(4, 3), none)
    loss = loss + local_alignment(points, torch.randn(2, 3), none)
    loss = loss + global_alignment(points[:0], torch.zeros(0, 3), none[:0])
    loss.backward()
    assert loss.item() == 0 and points.grad is not None


def test_each_term_has_its_own_projections() -> None:
    both = Alignment(6, 5, AlignmentConfig(channels=4))
    names = {name.split(".")[1] for name, _ in both.named_parameters()}
    assert names == {"global_points", "global_pixels", "local_points", "local_pixels"}
    one = Alignment(6, 5, AlignmentConfig(channels=4, local_weight=0))
    found = one.terms(
        torch.randn(3, 6),
        torch.randn(3, 5),
        torch.tensor([0, 1, 1]),
        torch.tensor([0, 0, 1]),
        torch.randn(2, 5),
    )
    assert set(found) == {"global"}
    found["global"].backward()
    assert all(p.grad is not None for p in one.parameters())


def test_aligning_teaches_points_what_their_pixels_show() -> None:
    torch.manual_seed(0)
    kinds = torch.randint(0, 4, (200,))
    points, pixels = torch.randn(4, 8)[kinds], torch.randn(4, 5)[kinds]
    alignment = Alignment(8, 5, AlignmentConfig(channels=8, false_negative_quantile=None))
    patch_pixels = torch.randn(4, 5)
    optimizer = torch.optim.Adam(alignment.parameters(), 0.02)
    history = []
    for _ in range(60):
        losses = alignment.terms(points, pixels, kinds, kinds, patch_pixels)
        optimizer.zero_grad()
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        optimizer.step()
        history.append(total.item())
    assert history[0] > 1.0 and history[-1] < 0.1
