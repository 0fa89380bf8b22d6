# SPDX-License-Identifier: Apache-2.0
"""Checks of sparse tensors, packed keys and kernel maps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pcseg_core.errors import InputError
from pcseg_core.sparse import SparseTensor
from pcseg_core.sparse import keys as packing
from pcseg_core.sparse.maps import build_table, coarsen, kernel_offsets

coordinate = st.integers(-packing.MAX_COORD, packing.MAX_COORD)
voxel = st.tuples(st.integers(0, packing.MAX_BATCH), coordinate, coordinate, coordinate)


@given(st.lists(voxel, min_size=1, max_size=20))
def test_keys_round_trip_and_sort_like_coordinates(rows: list[tuple[int, ...]]) -> None:
    coords = torch.tensor(rows)
    keys = packing.pack(coords)
    assert bool((keys >= 0).all())
    assert packing.unpack(keys).tolist() == [list(row) for row in rows]
    order = keys.argsort(stable=True).tolist()
    assert [rows[i] for i in order] == sorted(rows)


@given(st.lists(voxel, min_size=1, max_size=20))
def test_halving_is_floor_division(rows: list[tuple[int, ...]]) -> None:
    keys = packing.halve(packing.halve(packing.pack(torch.tensor(rows))))
    expected = [[b, x // 4, y // 4, z // 4] for b, x, y, z in rows]
    assert packing.unpack(keys, 4).tolist() == expected


near = st.tuples(st.integers(0, 1), *(st.integers(-4, 4),) * 3)


@settings(max_examples=50)
@given(
    st.sets(near, min_size=1, max_size=60), st.sampled_from([1, 2, 3, 5]), st.sampled_from([1, 2])
)
def test_kernel_table_equals_a_dictionary(rows: set, kernel_size: int, stride: int) -> None:
    keys = packing.pack(torch.tensor(sorted(rows)))
    out = keys if stride == 1 else coarsen(keys)
    table = build_table(keys, out, kernel_size, stride)
    row_of = {row: i for i, row in enumerate(sorted(rows))}
    for k, offset in enumerate(kernel_offsets(kernel_size)):
        for o, (b, *cell) in enumerate(packing.unpack(out, stride).tolist()):
            source = (b, *(stride * c + d for c, d in zip(cell, offset, strict=True)))
            assert int(table[k, o]) == row_of.get(source, -1)


def test_offsets_are_lexicographic() -> None:
    assert kernel_offsets(2)[:3] == [(0, 0, 0), (0, 0, 1), (0, 1, 0)]
    assert kernel_offsets(3) == sorted(kernel_offsets(3)) and kernel_offsets(3)[13] == (0, 0, 0)
    assert kernel_offsets(5)[0] == (-2, -2, -2) and len(kernel_offsets(5)) == 125


GOOD = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0]])
FEATS = torch.ones(3, 2)


@pytest.mark.parametrize(
    ("coords", "feats", "message"),
    [
        (GOOD[:0], FEATS[:0], "no voxels"),
        (GOOD, FEATS[:2], "3 voxels but 2 rows"),
        (GOOD, FEATS.int(), "floating point"),
        (GOOD, FEATS.fill_(1) * torch.tensor([[1, 1], [1, float("nan")], [1, 1]]), "row 1"),
        (GOOD[[0, 0, 1]], FEATS, "occur twice"),
        (GOOD[[0, 2, 1]], FEATS, "not sorted at row 2"),
        (GOOD.float(), FEATS, "integer tensor"),
        (GOOD[:, :3], FEATS, "shape"),
        (GOOD + torch.tensor([0, 0, 131070, 0]), FEATS, "y spans 131070 to 131070"),
        (GOOD - torch.tensor([0, 131070, 0, 0]), FEATS, "x spans -131070"),
        (GOOD + torch.tensor([512, 0, 0, 0]), FEATS, "batch index 512"),
        (GOOD - torch.tensor([1, 0, 0, 0]), FEATS, "batch index -1"),
    ],
)
def test_bad_tensors_are_refused(coords: torch.Tensor, feats: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SparseTensor(coords, feats)


def test_sort_brings_rows_into_order() -> None:
    x, order = SparseTensor.sort(GOOD[[2, 0, 1]], torch.tensor([[2.0], [0.0], [1.0]]))
    assert x.feats[:, 0].tolist() == [0.0, 1.0, 2.0] and order.tolist() == [1, 2, 0]
    assert x.coords.tolist() == GOOD.tolist()


def test_cache_of_other_voxels_is_refused() -> None:
    x = SparseTensor(GOOD, FEATS)
    assert SparseTensor(GOOD, FEATS, cache=x.cache).cache is x.cache
    with pytest.raises(InputError, match="not those of the cache"):
        SparseTensor(GOOD + 1, FEATS, cache=x.cache)
    with pytest.raises(InputError, match="power of two"):
        x.cache.keys(3)
