# SPDX-License-Identifier: Apache-2.0
"""Every instruction set in float32 and bfloat16: tails, blocks, padding, threads, permission."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from grids import dense_weight, random_grid, sample, to_dense
from torch import Tensor
from torch.nn import functional

from pcseg_core.errors import InputError
from pcseg_core.native import library, tensors
from pcseg_core.sparse.maps import KernelMap

pytestmark = pytest.mark.usefixtures("native")
NAN = float("nan")


def isas() -> list[str]:
    return [] if isinstance(library.load(), str) else list(library.isa_names())


@pytest.fixture(params=isas())
def isa(request: pytest.FixtureRequest) -> int:
    return library.isa_names().index(request.param)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def surrounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """A view of the values in a buffer that is NaN wherever the library must not read."""
    rows, columns = values.shape
    even = columns + columns % 2
    buffer = torch.full((rows + 40, even + 34), NAN, dtype=dtype)
    buffer[:rows, :even] = 0
    buffer[:rows, :columns] = values.to(dtype)
    return buffer[:rows, :even]


def exact(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values that the type can hold: products of them are exact in float32 sums of float64."""
    return values.to(dtype).double()


@pytest.mark.parametrize("kind", ["submanifold", "strided", "inverse"])
@pytest.mark.parametrize("widths", [(3, 5), (31, 33), (32, 48), (64, 16), (80, 32)])
def test_dense_convolution(
    kind: str, widths: tuple[int, int], isa: int, dtype: torch.dtype
) -> None:
    cin, cout = widths
    x = random_grid(cin, dtype=torch.float64)
    size = 3 if kind == "submanifold" else 2
    weight = torch.randn(size**3, cin, cout, generator=torch.Generator().manual_seed(1))
    weight = exact(weight, dtype)
    kernel_map: KernelMap = x.cache.kernel_map(1, size, 1 if size == 3 else 2)
    out = x.replace(torch.zeros(len(x), cout).double())
    if kind == "inverse":
        coarse = x.cache.keys(2)
        x = x.of(torch.randn(len(coarse), cin).double(), 2, x.cache)
        kernel_map = kernel_map.inverse
    elif kind == "strided":
        out = x.of(torch.zeros(kernel_map.n_out, cout).double(), 2, x.cache)
    feats = exact(x.feats, dtype)
    dense, kernel = to_dense(x.replace(feats)), dense_weight(weight, size)
    if kind == "inverse":
        expected = functional.conv_transpose3d(dense, kernel.transpose(0, 1), stride=2)
    else:
        step, edge = (1, 1) if size == 3 else (2, 0)
        expected = functional.conv3d(dense, kernel, stride=step, padding=edge)
    packed = tensors.pack(weight.float(), dtype, isa=isa)
    given = torch.empty(len(out), cout)
    tensors.conv(surrounded(feats, dtype), kernel_map.table, packed, given, cin, isa=isa)
    torch.testing.assert_close(given.double(), sample(expected, out), rtol=1e-5, atol=1e-4)


def definition(x: Tensor, table: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """relu(convolution + bias + residual) in float64."""
    padded = torch.cat([x, torch.zeros(1, x.shape[1]).double()])
    out = bias.double() + residual
    for rows, offset in zip(table.long(), weight, strict=True):
        out = out + padded[rows] @ offset
    return out.clamp(min=0)


@pytest.mark.parametrize("rows", [0, 1, 15, 17, 31, 33, 257, 1025, 4097, 16417])
@pytest.mark.parametrize("widths", [(1, 1), (33, 17), (64, 49)])
def test_rows_beyond_a_block(
    rows: int, widths: tuple[int, int], isa: int, dtype: torch.dtype
) -> None:
    """Blocks and groups that are not full, with bias, residual in place and rectifier."""
    cin, cout = widths
    generator = torch.Generator().manual_seed(rows)
    offsets = 27 if rows < 2000 else 3
    x = exact(torch.randn(rows, cin, generator=generator), dtype)
    weight = exact(torch.randn(offsets, cin, cout, generator=generator), dtype)
    bias = torch.randn(cout, generator=generator)
    kept = exact(torch.randn(rows, cout, generator=generator), dtype)
    table = torch.randint(-rows - 1, rows, (offsets, rows), generator=generator)
    table = table.clamp(min=-1).int()
    table[offsets // 2] = torch.arange(rows)
    out = torch.full((rows + 1, cout + 2), 7.0, dtype=dtype)
    inside = out[:rows, 1:-1]
    inside.copy_(kept)
    packed = tensors.pack(weight.float(), dtype, isa=isa)
    tensors.conv(surrounded(x, dtype), table, packed, inside, cin, bias, inside, True, isa=isa)
    expected = definition(x, table, weight, bias, kept)
    rounding = 1e-5 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(inside.double(), expected, rtol=rounding, atol=1e-4)
    out[:rows, 1:-1] = 7
    assert bool((out == 7).all())


def test_a_middle_offset_that_has_all_rows_in_another_order(isa: int, dtype: torch.dtype) -> None:
    """Only the identity may be read in place."""
    x = exact(torch.randn(96, 32, generator=torch.Generator().manual_seed(0)), dtype)
    table = torch.arange(96, dtype=torch.int32)
    table[1], table[2] = 2, 1
    weight = torch.eye(32)[None]
    out = torch.empty(96, 32)
    packed = tensors.pack(weight, dtype, isa=isa)
    tensors.conv(x.to(dtype), table[None], packed, out, 32, isa=isa)
    assert torch.equal(out.double(), x[table.long()])


def test_same_bits_for_any_number_of_threads(isa: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20000, 40, generator=generator).to(dtype)
    table = torch.randint(-20000, 20000, (27, 20000), generator=generator, dtype=torch.int32)
    packed = tensors.pack(torch.randn(27, 40, 48, generator=generator), dtype, isa=isa)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(tensors.conv(x, table, packed, torch.empty(20000, 48), 40, isa=isa))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_pairs_listed_before_give_the_same_bits(isa: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(700, 16, generator=generator).to(dtype)
    table = torch.randint(-700, 700, (8, 600), generator=generator, dtype=torch.int32)
    packed = tensors.pack(torch.randn(8, 16, 16, generator=generator), dtype, isa=isa)
    pairs = tensors.list_pairs(table, 700, dtype, isa)
    given = tensors.conv(x, table, packed, torch.empty(600, 16), 16, isa=isa, pairs=pairs)
    assert torch.equal(given, tensors.conv(x, table, packed, torch.empty(600, 16), 16, isa=isa))


def test_pairs_of_another_table_are_refused() -> None:
    table = torch.zeros(8, 600, dtype=torch.int32)
    packed = tensors.pack(torch.ones(8, 16, 16))
    for pairs in (
        tensors.list_pairs(table, 500),
        tensors.list_pairs(table[:, :500].contiguous(), 700),
        tensors.list_pairs(table[:1].contiguous(), 700),
        torch.zeros(4, dtype=torch.int32),
        tensors.list_pairs(table, 700).float(),
    ):
        with pytest.raises(InputError, match=r"do not belong|refused"):
            x, out = torch.ones(700, 16), torch.empty(600, 16)
            tensors.conv(x, table, packed, out, 16, pairs=pairs)


REFUSED = """
import ctypes
class Stack(ctypes.Structure):
    _fields_ = [("at", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
memory = ctypes.create_string_buffer(8192)
stack = Stack(ctypes.addressof(memory), 0, 8192)
assert ctypes.CDLL(None, use_errno=True).sigaltstack(ctypes.byref(stack), None) == 0
import torch
from pcseg_core.native import library, tensors
packed = tensors.pack(torch.ones(1, 4, 4), torch.bfloat16)
out = tensors.conv(torch.ones(3, 4).bfloat16(), None, packed, torch.empty(3, 4), 4)
assert bool((out == 4).all())
print(",".join(library.isa_names()))
"""


@pytest.mark.skipif("amx" not in isas(), reason="this CPU or system has no AMX")
def test_a_refused_request_for_tiles_falls_back() -> None:
    """Linux refuses it while a thread has a small stack for signals."""
    done = subprocess.run(
        [sys.executable, "-c", REFUSED], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().split(",") == isas()[:-1]


def test_an_old_compiler_leaves_the_newest_kernels_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses their flags; the file is then empty and the rest is built."""
    from pcseg_core.native import build

    compiler = tmp_path / "old"
    compiler.write_text('#!/bin/sh\ncase "$*" in *-mamx*) exit 1;; esac\nexec c++ "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-O0"))
    path = build.build(tmp_path / "out")
    script = "from pcseg_core.native import library; print(','.join(library.isa_names()))"
    environment = os.environ | {"PCSEG_NATIVE_LIBRARY": str(path)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip().split(",") == [name for name in isas() if name != "amx"]
