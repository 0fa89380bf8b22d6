# SPDX-License-Identifier: Apache-2.0
"""Voxelization and the way back to points."""

from __future__ import annotations

import math

import pytest
import torch

from pcseg_core.errors import InputError
from pcseg_core.sparse import devoxelize, mean_features, voxelize
from pcseg_core.sparse.voxels import first_features


def test_points_share_voxels_by_floor() -> None:
    xyz = torch.tensor([[0.05, 0.05, 0.05], [-0.05, 0.0, 0.0], [0.09, 0.01, 0.0], [0.0, 0.0, 0.1]])
    voxels = voxelize(xyz, 0.1)
    assert voxels.coords.tolist() == [[0, -1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert voxels.inverse.tolist() == [1, 0, 1, 2]
    assert voxels.counts.tolist() == [1, 2, 1]


def test_batches_and_edges_per_axis() -> None:
    xyz = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    voxels = voxelize(xyz, (0.5, 1.0, 2.0), torch.tensor([1, 0]))
    assert voxels.coords.tolist() == [[0, 2, 1, 0], [1, 2, 1, 0]]
    assert voxels.inverse.tolist() == [1, 0]


def test_cylindrical_axes_are_radius_azimuth_height() -> None:
    xyz = torch.tensor([[0.0, 2.0, -1.0], [-3.0, -0.01, 0.5]])
    voxels = voxelize(xyz, (0.5, math.pi / 8, 1.0), mode="cylindrical")
    assert voxels.coords.tolist() == [[0, 4, 4, -1], [0, 6, -8, 0]]


def test_rounding_takes_halves_to_the_even_index() -> None:
    xyz = torch.tensor([[0.5, 1.5, -0.5], [0.49, 1.51, -0.51], [2.5, 2.51, 0.0]])
    voxels = voxelize(xyz, 1.0, rounding="round")
    assert voxels.coords[voxels.inverse].tolist() == [[0, 0, 2, 0], [0, 0, 2, -1], [0, 2, 3, 0]]
    inside = voxels.grid - voxels.coords[voxels.inverse][:, 1:]
    assert float(inside.min()) >= 0 and float(inside.max()) <= 1


def test_indices_from_the_smallest_of_each_sweep() -> None:
    xyz = torch.tensor([[-3.5, 2.0, 9.0], [4.0, 1.0, 9.5], [70.0, -8.0, 0.0]])
    voxels = voxelize(xyz, 1.0, torch.tensor([0, 0, 2]), origin="minimum")
    assert voxels.coords.tolist() == [[0, 0, 1, 0], [0, 8, 0, 0], [2, 0, 0, 0]]
    assert torch.equal(voxels.grid.floor().int(), voxels.coords[voxels.inverse][:, 1:])


def test_the_first_point_in_order_stands_for_its_voxel() -> None:
    voxels = voxelize(torch.tensor([[1.5, 0, 0], [0.2, 0, 0], [0.1, 0, 0], [1.1, 0, 0]]), 1.0)
    feats = torch.tensor([[5.0], [3.0], [1.0], [9.0]], requires_grad=True)
    first = first_features(feats, voxels)
    assert first.tolist() == [[3.0], [5.0]]
    first.sum().backward()
    assert feats.grad.tolist() == [[1.0], [1.0], [0.0], [0.0]]


def test_mean_features_and_gradient() -> None:
    voxels = voxelize(torch.tensor([[0.1, 0, 0], [0.2, 0, 0], [1.5, 0, 0]]), 1.0)
    feats = torch.tensor([[1.0], [3.0], [5.0]], requires_grad=True)
    mean = mean_features(feats, voxels)
    assert mean.tolist() == [[2.0], [5.0]]
    mean.sum().backward()
    assert feats.grad.tolist() == [[0.5], [0.5], [1.0]]


def test_nearest_gives_each_point_its_voxel() -> None:
    voxels = voxelize(torch.rand(50, 3), 0.3)
    feats = torch.randn(len(voxels), 2)
    assert torch.equal(devoxelize(feats, voxels), feats[voxels.inverse])


def test_trilinear_is_exact_for_linear_fields_inside() -> None:
    """Where all eight neighbors are occupied, a linear field is reproduced, with gradient."""
    axis = torch.arange(4) + 0.5
    centers = torch.cartesian_prod(axis, axis, axis)
    inside = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)) * 2.9 + 0.52
    voxels = voxelize(torch.cat([centers, inside]), 1.0)
    field = (centers @ torch.tensor([1.0, -2.0, 0.5]))[:, None].requires_grad_()
    given = devoxelize(field, voxels, "trilinear")[len(centers) :]
    torch.testing.assert_close(given, (inside @ torch.tensor([1.0, -2.0, 0.5]))[:, None])
    given.sum().backward()
    torch.testing.assert_close(field.grad.sum(), torch.tensor(20.0))


def test_trilinear_leaves_out_absent_voxels_and_other_sweeps() -> None:
    xyz = torch.tensor([[0.9, 0.5, 0.5], [1.2, 0.5, 0.5]])
    feats = torch.tensor([[1.0], [2.0]])
    one = devoxelize(feats, voxelize(xyz, 1.0), "trilinear")
    torch.testing.assert_close(one, torch.tensor([[1.4], [1.7]]))
    two = devoxelize(feats, voxelize(xyz, 1.0, torch.tensor([0, 1])), "trilinear")
    torch.testing.assert_close(two, feats)


@pytest.mark.parametrize(
    ("xyz", "size", "message"),
    [
        (torch.zeros(0, 3), 0.1, "empty"),
        (torch.tensor([[0.0, math.nan, 0.0]]), 0.1, "1 of 1 are not finite"),
        (torch.tensor([[0.0, 20000.0, 0.0]]), 0.1, "200000 voxels from the origin"),
        (torch.zeros(2, 2), 0.1, "shape"),
        (torch.zeros(2, 3), -0.1, "positive"),
        (torch.zeros(2, 3), (0.1, 0.1), "one or three"),
    ],
)
def test_bad_clouds_are_refused(xyz: torch.Tensor, size: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        voxelize(xyz, size)


def test_bad_calls_are_refused() -> None:
    xyz = torch.rand(4, 3)
    with pytest.raises(InputError, match="three numbers"):
        voxelize(xyz, 0.1, mode="cylindrical")
    with pytest.raises(InputError, match="batch_index"):
        voxelize(xyz, 0.1, torch.zeros(3, dtype=torch.int64))
    voxels = voxelize(xyz, 0.1)
    with pytest.raises(InputError, match="one per point"):
        mean_features(torch.zeros(3, 1), voxels)
    with pytest.raises(InputError, match="one per voxel"):
        devoxelize(torch.zeros(len(voxels) + 1, 1), voxels)
    with pytest.raises(InputError, match="nearest"):
        devoxelize(torch.zeros(len(voxels), 1), voxels, "cubic")  # type: ignore[arg-type]
