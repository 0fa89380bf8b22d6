# SPDX-License-Identifier: Apache-2.0
"""Space-filling curves and patches along them, against their definitions."""

import itertools

import pytest
import torch
from torch import Tensor

from pcseg_core.models.curves import places
from pcseg_core.models.patches import cube_bits, patches_of


def cube(bits: int) -> Tensor:
    """All cells of a cube of edge 2**bits."""
    return torch.tensor(list(itertools.product(range(1 << bits), repeat=3)))


def interleaved(cell: list[int], bits: int) -> int:
    """Bits of x, y and z in turn, the highest first."""
    rows = [f"{value:0{bits}b}" for value in cell]
    return int("".join(x + y + z for x, y, z in zip(*rows, strict=True)), 2)


def test_z_order_interleaves_bits() -> None:
    assert places(torch.tensor([[0, 0, 1], [0, 1, 0], [1, 0, 0]]), "z", 1).tolist() == [1, 2, 4]
    cells = torch.randint(0, 1 << 18, (50, 3), generator=torch.Generator().manual_seed(0))
    expected = [interleaved(cell, 18) for cell in cells.tolist()]
    assert places(cells, "z", 18).tolist() == expected


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_hilbert_visits_each_cell_once_and_moves_by_one(bits: int) -> None:
    cells = cube(bits)
    where = places(cells, "hilbert", bits)
    assert sorted(where.tolist()) == list(range(len(cells)))
    path = cells[where.argsort()]
    assert path[0].tolist() == [0, 0, 0]
    assert bool(((path[1:] - path[:-1]).abs().sum(1) == 1).all())


def test_hilbert_begins_as_published() -> None:
    """Directions that the definition leaves open, of the curve of Skilling's algorithm."""
    small = cube(1)[places(cube(1), "hilbert", 1).argsort()]
    assert small.tolist()[:4] == [[0, 0, 0], [0, 0, 1], [0, 1, 1], [0, 1, 0]]
    larger = cube(2)[places(cube(2), "hilbert", 2).argsort()]
    assert larger.tolist()[:4] == [[0, 0, 0], [0, 1, 0], [1, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("curve", ["z", "hilbert"])
def test_trans_swaps_x_and_y(curve: str) -> None:
    cells = cube(2)
    swapped = places(cells[:, [1, 0, 2]], curve, 2)  # type: ignore[arg-type]
    assert torch.equal(places(cells, f"{curve}-trans", 2), swapped)  # type: ignore[arg-type]


def test_the_last_patch_borrows_from_the_one_before() -> None:
    """Ten voxels and three of another sweep, along z."""
    rows = [[0, 0, 0, z] for z in range(10)] + [[1, 0, 0, z] for z in (2, 0, 1)]
    coords = torch.tensor(rows)
    assert cube_bits(coords) == [4, 2]
    (patches,) = patches_of(coords, ["z"], 4, [4, 2])
    whole, small = patches.rows
    assert whole.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 6, 7]]
    assert small.tolist() == [[11, 12, 10]]
    assert patches.kept.tolist() == [*range(10), 14, 12, 13]


def test_a_sweep_of_full_patches_borrows_nothing() -> None:
    rows = torch.tensor([[0, 0, 0, z] for z in range(8)])
    (patches,) = patches_of(rows, ["z"], 4, [4])
    assert [part.tolist() for part in patches.rows] == [[[0, 1, 2, 3], [4, 5, 6, 7]]]
    (patches,) = patches_of(rows, ["z"], 8, [4])
    assert [part.tolist() for part in patches.rows] == [[[*range(8)]]]
