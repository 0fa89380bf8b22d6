# SPDX-License-Identifier: Apache-2.0
"""Arbitrary arguments into the native library: a result or an InputError, never a crash.

Run it against a library built with ``--flag=-fsanitize=address`` (PCSEG_NATIVE_LIBRARY names it,
libasan preloaded) and with more examples (PCSEG_FUZZ_EXAMPLES) to look for reads out of bounds.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcseg_core.errors import InputError
from pcseg_core.native import sweeps, tensors

pytestmark = pytest.mark.usefixtures("native")
fuzz = settings(
    max_examples=int(os.environ.get("PCSEG_FUZZ_EXAMPLES", "150")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

SIZES = st.sampled_from([0, 1, 2, 3, 5, 16, 31, 48, 255, 256, 257])
DTYPES = st.sampled_from([*tensors.DTYPES, torch.float64, torch.int32])


@st.composite
def matrices(draw: st.DrawFn, dtype: torch.dtype | None = None) -> Tensor:
    """Matrices of any size; some are slices, transposed, or of three dimensions."""
    rows, columns = draw(SIZES), draw(SIZES)
    kind = draw(st.sampled_from(["plain"] * 5 + ["slice", "transposed", "strided", "vector"]))
    chosen = draw(DTYPES) if dtype is None else dtype
    base = torch.ones(rows + 1, 2 * columns + 2).to(chosen)
    views = {
        "plain": base[:rows, :columns].contiguous(),
        "slice": base[:rows, 1 : columns + 1],
        "transposed": base[:rows, :columns].t(),
        "strided": base[:rows, : 2 * columns : 2],
        "vector": base[:rows, 0],
    }
    return views[kind]


@st.composite
def tables(draw: st.DrawFn) -> Tensor | None:
    offsets, rows = draw(st.sampled_from([0, 1, 8, 27, 126])), draw(SIZES)
    if draw(st.integers(0, 5)) == 0:
        return None
    bound = draw(st.sampled_from([1, 300, 2**31 - 1]))
    seed = torch.Generator().manual_seed(draw(st.integers(0, 9)))
    table = torch.randint(-bound, bound, (offsets, rows), generator=seed, dtype=torch.int32)
    return table[:, ::2] if draw(st.integers(0, 9)) == 0 else table


def attempt(call, *arguments, **named) -> bool:
    """Whether the call was accepted; anything but an InputError fails the test."""
    try:
        call(*arguments, **named)
    except InputError:
        return False
    return True


@fuzz
@given(st.data())
def test_convolution(data: st.DataObject) -> None:
    """Mostly consistent arguments, one of them replaced by something arbitrary."""
    rows, n_in, cin, cout, offsets = (
        data.draw(s) for s in (SIZES, SIZES, SIZES, SIZES, st.sampled_from([1, 8, 27]))
    )
    seed = torch.Generator().manual_seed(rows)
    dtype = data.draw(st.sampled_from(list(tensors.DTYPES)))
    arguments = {
        "x": torch.ones(n_in, (cin + 3) // 4 * 4).to(dtype),
        "table": torch.randint(-5, 400, (offsets, rows), generator=seed, dtype=torch.int32),
        "out": torch.empty(rows, cout),
        "cin": cin,
        "bias": torch.ones(cout) if data.draw(st.booleans()) else None,
        "residual": torch.ones(rows, cout).to(dtype) if data.draw(st.booleans()) else None,
        "relu": data.draw(st.booleans()),
        "integers": tensors.Integers(torch.ones(max(cout, 0))),
    }
    weight = torch.ones(offsets, max(cin, 1), max(cout, 1))
    arguments["packed"] = tensors.pack(weight, dtype)
    consistent = cin > 0 and cout > 0
    spoiled = data.draw(st.sampled_from([None, "x", "table", "out", "cin", "bias", "residual"]))
    if spoiled == "table":
        arguments["table"] = data.draw(tables())
    elif spoiled == "cin":
        arguments["cin"] = data.draw(st.integers(-3, 70000))
    elif spoiled is not None:
        arguments[spoiled] = data.draw(matrices())
    accepted = attempt(tensors.conv, **arguments)
    assert accepted or not consistent or spoiled is not None


@fuzz
@given(matrices(), matrices(), tables(), st.integers(-1, 130))
def test_weight_gradient(x: Tensor, dy: Tensor, table: Tensor | None, offsets: int) -> None:
    attempt(tensors.grad_weight, x, dy, table, offsets)


@fuzz
@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=60),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=60),
    st.integers(-1, 7),
    st.integers(-1, 3),
)
def test_maps_of_arbitrary_keys(a: list[int], b: list[int], kernel_size: int, stride: int) -> None:
    """Unsorted, repeated, negative keys give a wrong map at worst."""
    keys, others = torch.tensor(a, dtype=torch.int64), torch.tensor(b, dtype=torch.int64)
    if attempt(tensors.coarsen, keys):
        assert len(tensors.coarsen(keys)) <= len(keys)
    for out in (keys, others, keys[: len(others)], keys[len(others) :], keys[::2]):
        if attempt(tensors.build_table, keys, out, kernel_size, stride):
            table = tensors.build_table(keys, out, kernel_size, stride)
            assert table.numel() == 0 or int(table.max()) < len(keys)
            attempt(tensors.invert_table, table, len(keys))


@fuzz
@given(matrices(), tables(), st.integers(-3, 400))
def test_other_types_are_refused(matrix: Tensor, table: Tensor | None, n_in: int) -> None:
    attempt(tensors.coarsen, matrix)
    attempt(tensors.build_table, matrix, matrix, 3, 1)
    attempt(tensors.pack, matrix[None])
    attempt(tensors.pack, matrix)
    attempt(tensors.pack, torch.ones(1, 4, 4), torch.float16)
    if table is not None:
        attempt(tensors.invert_table, table, n_in)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """Numbers of any kind in one to three dimensions; some are views, some huge or not finite."""
    shape = (draw(SIZES), draw(st.sampled_from([0, 1, 2, 3, 3, 3, 4, 40])))
    scale = draw(st.sampled_from([0.0, 1.0, 1e4, 1e38]))
    values = np.random.default_rng(draw(st.integers(0, 9))).normal(size=shape) * scale
    values[::7] = draw(st.sampled_from([0.0, np.nan, np.inf, -np.inf]))
    with np.errstate(over="ignore", invalid="ignore"):
        base = values.astype(draw(st.sampled_from([np.float32, np.float64, np.int64, np.int32])))
    views = {"plain": base, "strided": base[::2, ::-1], "vector": base[:, :1].ravel()}
    return {**views, "deep": base[None]}[draw(st.sampled_from(["plain"] * 4 + sorted(views)))]


@fuzz
@given(arrays(), st.none() | arrays(), st.lists(st.floats(), min_size=3, max_size=3), st.floats())
def test_points_to_voxels(
    points: np.ndarray, other: np.ndarray | None, size: list[float], range_m: float
) -> None:
    edges = (0.1, 0.1, 0.1) if other is None else tuple(size)
    names = [(name, 1.0) for name in sweeps.INPUTS]
    attempt(sweeps.group_points, points, edges, other)
    attempt(sweeps.group_points, points, edges, None)
    attempt(sweeps.group_sweep, points, other, edges, range_m, names)
    attempt(sweeps.group_sweep, points, None, (0.1, 0.1, 0.1), 1e3, names)


@fuzz
@given(arrays(), st.none() | arrays(), arrays(), st.integers(-1, 70000), st.booleans())
def test_logits_to_labels(
    logits: np.ndarray, owner: np.ndarray | None, inverse: np.ndarray, classes: int, every: bool
) -> None:
    attempt(sweeps.classify, logits, classes, owner, every)
    if logits.ndim == 2 and logits.shape[1]:
        rows = sweeps.classify(logits, logits.shape[1], None, every)
        attempt(sweeps.spread, inverse, *rows)
        attempt(sweeps.spread, inverse, rows[0][1:], *rows[1:])
