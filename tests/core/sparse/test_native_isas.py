# SPDX-License-Identifier: Apache-2.0
"""Every instruction set in float32 and bfloat16: tails, blocks, padding, threads, permission."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from grids import dense_weight, random_grid, sample, to_dense
from torch import Tensor
from torch.nn import functional

from benchmarks.measure import threads
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


@pytest.mark.parametrize("rows", [0, 1, 17, 33, 257, 1025, 4097, 16417])
@pytest.mark.parametrize("widths", [(1, 1), (33, 17), (64, 48), (132, 32)])
def test_integers_equal_the_definition(rows: int, widths: tuple[int, int], isa: int) -> None:
    """To float32, and rounded to uint8 with a bias, a residual in place and the rectifier."""
    cin, cout = widths
    generator = torch.Generator().manual_seed(rows)
    offsets = 27 if rows < 2000 else 3
    x = torch.randint(0, 256, (rows, cin), generator=generator)
    weight = torch.randint(-127, 128, (offsets, cin, cout), generator=generator)
    table = torch.randint(-rows - 1, rows, (offsets, rows), generator=generator)
    table = table.clamp(min=-1).int()
    table[offsets // 2] = torch.arange(rows)
    bias = torch.randn(cout, generator=generator) * 1000
    kept = torch.randint(0, 256, (rows, cout), generator=generator).to(torch.uint8)
    scale = torch.rand(cout, generator=generator) + 0.5
    packed = tensors.pack(weight.float(), torch.uint8, isa=isa)
    wide = (cin + 3) // 4 * 4
    buffer = torch.full((rows + 40, wide + 32), 255, dtype=torch.uint8)
    buffer[:rows, :cin] = x.to(torch.uint8)
    inside = buffer[:rows, :wide]
    sums = definition(x.double(), table, weight.double(), torch.zeros(cout), torch.zeros(1))
    plain = torch.empty(rows, cout)
    integers = tensors.Integers(scale, (300.0, -38400.0), (0.0005, 3.0))
    tensors.conv(inside, table, packed, plain, cin, relu=True, isa=isa, integers=integers)
    torch.testing.assert_close(plain.double(), sums * scale.double(), rtol=1e-6, atol=1e-3)
    out = torch.full((rows + 1, cout + 2), 7, dtype=torch.uint8)
    out[:rows, 1:-1] = kept
    given = out[:rows, 1:-1]
    tensors.conv(inside, table, packed, given, cin, bias, given, True, isa, integers=integers)
    added = bias.double() + kept.double() * 300 - 38400
    exact_sums = definition(
        x.double(), table, weight.double() * scale.double(), torch.zeros(cout), added
    )
    expected = (exact_sums * 0.0005 + 3).clamp(0, 255)
    assert bool(((given.double() - expected).abs() < 0.501).all())
    out[:rows, 1:-1] = 7
    assert bool((out == 7).all())


def test_integers_are_rounded_and_saturate(isa: int) -> None:
    x = torch.tensor([[255, 255], [1, 0], [0, 0]]).to(torch.uint8).repeat(1, 2)
    weight = torch.tensor([[[300.0, -0.6, 1.0]] * 4])  # as int8: 127, -1, 1
    packed = tensors.pack(weight, torch.uint8, isa=isa)
    shifted = tensors.Integers(torch.ones(3), out=(1.0, 128.0))
    out = torch.empty(3, 3, dtype=torch.uint8)
    tensors.conv(x, None, packed, out, 4, isa=isa, integers=shifted)
    assert out.tolist() == [[255, 0, 255], [255, 126, 130], [128, 128, 128]]
    # From float32 too, where NaN becomes 0.
    floats = torch.tensor([[0.49, NAN], [0.51, 0.0], [1e30, -1e30]])
    packed = tensors.pack(torch.eye(2)[None], isa=isa)
    out = torch.empty(3, 2, dtype=torch.uint8)
    tensors.conv(floats, None, packed, out, 2, isa=isa)
    assert out[1:].tolist() == [[1, 0], [255, 0]] and int(out[0, 1]) == 0


def test_integers_without_a_scale_or_with_too_many_terms_are_refused() -> None:
    """The sums are int32."""
    x = torch.ones(3, 4096, dtype=torch.uint8)
    table = torch.zeros(27, 3, dtype=torch.int32)
    packed, out = tensors.pack(torch.ones(27, 4096, 1), torch.uint8), torch.empty(3, 1)
    with pytest.raises(InputError, match="refused"):
        tensors.conv(x, table, packed, out, 4096, integers=tensors.Integers(torch.ones(1)))
    packed = tensors.pack(torch.ones(1, 4, 1), torch.uint8)
    with pytest.raises(InputError, match="refused"):
        tensors.conv(x[:, :4].contiguous(), None, packed, out, 4)


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


@pytest.mark.parametrize("dtype", list(tensors.DTYPES), ids=str)
def test_same_bits_for_any_number_of_threads(isa: int, dtype: torch.dtype) -> None:
    check_threads(isa, dtype, 20000)


def check_threads(isa: int, dtype: torch.dtype, rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(rows, 40, generator=generator) * 9).to(dtype)
    table = torch.randint(-rows, rows, (27, rows), generator=generator, dtype=torch.int32)
    packed = tensors.pack(torch.randn(27, 40, 48, generator=generator), dtype, isa=isa)
    results = []
    for count in (1, 2, 5):
        with threads(count):
            out = torch.empty(rows, 48)
            integers = tensors.Integers(torch.ones(48))
            results.append(tensors.conv(x, table, packed, out, 40, isa=isa, integers=integers))
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


@pytest.mark.skipif(shutil.which("clang++") is None, reason="needs clang++")
def test_clang_builds_the_library_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pcseg_core.native import build

    monkeypatch.setenv("CXX", "clang++")
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-O0"))
    path = build.build(tmp_path / "out")
    own_tests = Path(__file__).parents[1] / "online" / "test_native_outputs.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(own_tests)],
        capture_output=True,
        text=True,
        env=os.environ | {"PCSEG_NATIVE_LIBRARY": str(path)},
    )
    assert done.returncode == 0, done.stdout
