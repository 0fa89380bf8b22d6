# SPDX-License-Identifier: Apache-2.0
"""The student network: shapes, widths, gradients."""

from __future__ import annotations

import pytest
import torch

from pcseg_core.errors import InputError
from pcseg_core.models.minkunet import MinkUNet, scaled
from pcseg_core.sparse import SparseConv3d, SparseTensor


def random_input(channels: int = 3, seed: int = 0) -> SparseTensor:
    generator = torch.Generator().manual_seed(seed)
    occupied = torch.rand(2, 12, 12, 12, generator=generator) < 0.2
    coords = occupied.nonzero() - torch.tensor([0, 6, 6, 6])
    return SparseTensor(coords, torch.randn(len(coords), channels, generator=generator))


@pytest.mark.parametrize("depth", [14, 18, 34])
def test_output_lies_on_the_input_voxels(depth: int) -> None:
    net = MinkUNet(3, 7, depth, 0.5)
    x = random_input()
    out = net(x)
    assert out.feats.shape == (len(x), 7) and out.cache is x.cache and out.stride == 1
    assert net.features(x).shape == (len(x), net.feature_channels) == (len(x), 48)


def test_layers_and_planes_follow_the_literature() -> None:
    def convolutions(depth: int) -> int:
        return sum(isinstance(m, SparseConv3d) for m in MinkUNet(4, 2, depth).modules())

    shortcuts = 7  # the first block of a stage whose width changes
    for depth, blocks in ((14, 8), (18, 16), (34, 23)):
        assert convolutions(depth) == 1 + 8 + 2 * blocks + shortcuts
    assert [scaled(p, 0.5) for p in (32, 64, 96)] == [16, 32, 48]
    assert scaled(32, 0.25) == 16 and scaled(96, 0.35) == 32
    net = MinkUNet(4, 2, 34)
    assert net.feature_channels == 96
    assert 37e6 < sum(p.numel() for p in net.parameters()) < 38.5e6


def test_every_parameter_gets_a_gradient() -> None:
    net = MinkUNet(3, 7, 14, 0.5)
    net(random_input()).feats.square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.abs().max() > 0), name


def test_one_batch_can_be_learned() -> None:
    """The labels are the octant of each voxel; a few steps must fit them."""
    torch.manual_seed(0)
    x = random_input()
    x = x.replace(x.coords[:, 1:].float() / 6)
    labels = ((x.coords[:, 1:] >= 0).long() * torch.tensor([4, 2, 1])).sum(1)
    net = MinkUNet(3, 8, 14, 0.5)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(25):
        loss = torch.nn.functional.cross_entropy(net(x).feats, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float((net(x).feats.argmax(1) == labels).float().mean()) > 0.95


def test_translation_by_the_coarsest_stride_changes_nothing() -> None:
    net = MinkUNet(3, 4, 14, 0.5).eval()
    x = random_input()
    moved = SparseTensor(x.coords + torch.tensor([0, 16, -32, 48]), x.feats)
    torch.testing.assert_close(net(moved).feats, net(x).feats)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="depth 50"):
        MinkUNet(3, 4, 50)
    with pytest.raises(InputError, match="width 0"):
        MinkUNet(3, 4, 18, 0)
    with pytest.raises(InputError, match="expected 3 channels, got 2"):
        MinkUNet(3, 4, 14, 0.5)(random_input(2))
