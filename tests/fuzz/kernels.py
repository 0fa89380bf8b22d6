# SPDX-License-Identifier: Apache-2.0
"""Voxels and kernel maps of the native library, through its Python functions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from pcseg_core.errors import InputError
from pcseg_core.native import tensors
from pcseg_core.sparse import keys as packing
from pcseg_core.sparse import maps
from pcseg_core.sparse.voxels import voxelize

from .harness import Target

EDGES = (0, 1, -1, 2, 3, 255, 2**17, 2**18 - 1, 2**31, 2**54, 2**62, 2**63 - 1, -(2**63))


@st.composite
def arguments(draw: st.DrawFn) -> bytes:
    """JSON of keys, coordinates, sizes and a table."""
    near = st.integers(-3, 3)
    cells = draw(st.lists(st.tuples(st.integers(0, 2), near, near, near), max_size=60))
    strange = draw(st.lists(st.sampled_from(EDGES), max_size=8))
    table = draw(
        st.lists(
            st.lists(
                st.sampled_from([-1, 0, 1, 2, 5, 2**31 - 1, -(2**31)]), min_size=4, max_size=4
            ),
            max_size=9,
        )
    )
    content = {
        "cells": cells,
        "strange": strange,
        "table": table,
        "kernel": draw(st.sampled_from([1, 2, 3, 5, 0, 4, 7, -1, 2**40])),
        "stride": draw(st.sampled_from([1, 2, 1, 2, 0, 3, -1])),
        "n_in": draw(st.sampled_from([0, 1, 3, 6, 100, -1, 2**31, 2**40])),
        "sort": draw(st.booleans()),
        "far": draw(st.sampled_from([0, 0, 131066, -131069, 2**20])),
        "type": draw(st.sampled_from(["int64", "int64", "int64", "int32", "float64"])),
    }
    return json.dumps(content).encode()


def check_keys(case: bytes, folder: Path) -> None:
    """Keys of voxels give the maps of the reference; other keys give a result or an error."""
    given = json.loads(case)
    cells = torch.tensor(given["cells"], dtype=torch.int64).reshape(-1, 4)
    cells[:, 1:] += given["far"]
    keys = torch.unique(packing.pack(cells))
    coarse = maps.coarsen(keys)
    kernel, stride = given["kernel"], given["stride"]
    assert torch.equal(tensors.coarsen(keys), coarse)
    target = keys if stride == 1 else coarse
    table = tensors.build_table(keys, target, kernel, stride)
    if kernel in maps.KERNEL_SIZES:
        assert torch.equal(table, maps.build_table(keys, target, kernel, stride))
        back = tensors.invert_table(table, len(keys))
        assert torch.equal(back, maps.invert_table(table, len(keys)))


def check_strange(case: bytes, folder: Path) -> None:
    """Keys that are no voxels, unsorted or repeated, and tables that point anywhere."""
    given = json.loads(case)
    wanted = getattr(torch, given["type"])
    keys = torch.tensor(given["strange"] * 3, dtype=torch.int64)
    keys = keys.sort().values if given["sort"] else keys
    calls: list[Any] = [
        lambda: _bounded(tensors.coarsen(keys.to(wanted)), len(keys)),
        lambda: _rows(tensors.build_table(keys, keys[::2], given["kernel"], given["stride"]), keys),
        lambda: _rows(tensors.build_table(keys[:2], keys.to(wanted), 3, 1), keys[:2]),
    ]
    table = torch.tensor(given["table"], dtype=torch.int32).reshape(-1, 4)
    if given["n_in"] < 2**31:
        calls.append(lambda: tensors.invert_table(table, given["n_in"]))
    errors = [error for error in map(_refusal, calls) if error is not None]
    if len(errors) == len(calls):
        raise errors[0]


def _refusal(call: Any) -> Exception | None:
    try:
        call()
    except InputError as error:
        return error
    return None


def _bounded(found: Tensor, count: int) -> None:
    assert len(found) <= count and found.dtype == torch.int64


def _rows(table: Tensor, keys: Tensor) -> None:
    """Rows of a table are those of its input, or -1."""
    assert table.dtype == torch.int32
    assert not table.numel() or (int(table.min()) >= -1 and int(table.max()) < max(1, len(keys)))


@st.composite
def points(draw: st.DrawFn) -> bytes:
    """JSON of points, sizes of voxels and numbers of sweeps."""
    special = st.sampled_from([0.0, 1e6, 1e30, -1e9, 6553.0, float("nan"), float("inf")])
    near = st.floats(-50, 50, width=32)
    numbers = draw(st.sampled_from([near, near, near, st.one_of(near, special)]))
    sizes = [0.05, 0.5, [0.1, 0.02, 0.1], 0.0, -1.0, 1e-30, 1e30, [1, 2], [], True]
    content = {
        "xyz": draw(st.lists(st.lists(numbers, min_size=3, max_size=3), max_size=30)),
        "size": draw(st.sampled_from(sizes)),
        "mode": draw(st.sampled_from(["cartesian", "cartesian", "cylindrical", "x" * 50])),
        "batch": draw(st.sampled_from([None, 0, 511, 512, -1, 2**40])),
    }
    return json.dumps(content).encode()


def check_voxels(case: bytes, folder: Path) -> None:
    """Each point is in its voxel, voxels are unique, and counts add up."""
    given = json.loads(case)
    xyz = torch.tensor(given["xyz"], dtype=torch.float32).reshape(-1, 3)
    batch = None if given["batch"] is None else torch.full((len(xyz),), given["batch"])
    voxels = voxelize(xyz, given["size"], batch, given["mode"])
    assert int(voxels.counts.sum()) == len(xyz) == len(voxels.inverse)
    assert len(torch.unique(voxels.keys)) == len(voxels)
    inside = voxels.coords[voxels.inverse][:, 1:]
    assert torch.equal(voxels.grid.floor().to(torch.int32), inside)


TARGETS = (
    Target("kernel-map", arguments, check_keys, ("native library", "voxel"), 80),
    Target("kernel-arguments", arguments, check_strange, ("native library",), 80),
    Target("voxels", points, check_voxels, ("voxel", "points", "batch"), 100),
)
