# SPDX-License-Identifier: Apache-2.0
"""The native library against the torch backend, on every instruction set this machine has."""

from __future__ import annotations

import pytest
import torch
from grids import random_grid
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.measure import threads
from pcseg_core.errors import InputError
from pcseg_core.native import library, tensors
from pcseg_core.sparse import SparseConv3d, SparseTensor, backends
from pcseg_core.sparse import keys as packing
from pcseg_core.sparse.maps import MapBuilder, build_table, coarsen, invert_table

pytestmark = pytest.mark.usefixtures("native")


def isas() -> list[int]:
    return [] if isinstance(library.load(), str) else list(range(len(library.isa_names())))


def random_voxels(count: int, extent: int, seed: int = 0) -> Tensor:
    """Sorted keys of random voxels, batches and negative coordinates included."""
    generator = torch.Generator().manual_seed(seed)
    coords = torch.randint(-extent, extent, (count, 4), generator=generator)
    coords[:, 0] = coords[:, 0] >= 0
    return torch.unique(packing.pack(coords))


@pytest.mark.parametrize("used", [1, 3])
@pytest.mark.parametrize(("count", "extent"), [(1, 3), (60, 4), (20000, 25), (9000, 100000)])
def test_maps_equal_the_plain_ones(count: int, extent: int, used: int) -> None:
    keys = random_voxels(count, extent)
    with threads(used):
        coarse = tensors.coarsen(keys)
        assert torch.equal(coarse, coarsen(keys))
        for kernel_size in (1, 2, 3, 5):
            for stride, out in ((1, keys), (2, coarse)):
                table = tensors.build_table(keys, out, kernel_size, stride)
                assert torch.equal(table, build_table(keys, out, kernel_size, stride))
                inverse = tensors.invert_table(table, len(keys))
                assert torch.equal(inverse, invert_table(table, len(keys)))


def reference(x: Tensor, table: Tensor, weight: Tensor) -> Tensor:
    """Convolution in float64, straight from the definition."""
    padded = torch.cat([x.double(), torch.zeros(1, x.shape[1]).double()])
    out = torch.zeros(table.shape[1], weight.shape[2], dtype=torch.float64)
    for rows, offset in zip(table.long(), weight.double(), strict=True):
        out += padded[rows] @ offset
    return out


@pytest.mark.parametrize("count", [0, 1, 100, 4999])
@pytest.mark.parametrize("longer", [False, True])
def test_a_slice_of_the_keys_is_not_taken_for_all_of_them(count: int, longer: bool) -> None:
    """Both start at the same address, and the table has room for the outputs only."""
    keys = random_voxels(20_000, 25)[:5000]
    pair = (keys[:count], keys) if longer else (keys, keys[:count])
    for kernel_size in (1, 2, 3, 5):
        table = tensors.build_table(*pair, kernel_size, 1)
        assert torch.equal(table, build_table(*pair, kernel_size, 1))


def test_the_library_itself_writes_within_the_table() -> None:
    keys = random_voxels(20_000, 25)[:5000]
    table = torch.full((27 * 5000,), 7, dtype=torch.int32)
    address = keys.data_ptr()
    status = library.library().pcseg_build_table(
        address, 5000, address, 100, 3, 1, table.data_ptr(), 1
    )
    assert status == 0 and bool((table[27 * 100 :] == 7).all())


WIDTHS = st.integers(1, 70)


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(isas()),
    st.integers(1, 600),
    st.integers(1, 600),
    WIDTHS,
    WIDTHS,
    st.sampled_from([1, 8, 27]),
    st.floats(0, 1),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(0, 1000),
)
def test_any_shape_equals_the_definition(
    isa: int,
    n_in: int,
    n_out: int,
    cin: int,
    cout: int,
    offsets: int,
    density: float,
    bias: bool,
    residual: bool,
    relu: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n_in, cin, generator=generator)
    table = torch.randint(0, n_in, (offsets, n_out), generator=generator, dtype=torch.int32)
    table[torch.rand(table.shape, generator=generator) > density] = -1
    weight = torch.randn(offsets, cin, cout, generator=generator)
    expected = reference(x, table, weight)
    shift = torch.randn(cout, generator=generator) if bias else None
    kept = torch.randn(n_out, cout, generator=generator) if residual else None
    if shift is not None:
        expected = expected + shift
    if kept is not None:
        expected = expected + kept
    if relu:
        expected = expected.clamp(min=0)
    # A column of a wider buffer, with a guard that must stay untouched.
    buffer = torch.full((n_out, cout + 3), 7.0)
    packed = tensors.pack(weight, isa=isa)
    tensors.conv(x, table, packed, buffer[:, 1:-2], cin, shift, kept, relu, isa=isa)
    tolerance = 1e-5 * (offsets * cin) ** 0.5
    torch.testing.assert_close(buffer[:, 1:-2].double(), expected, rtol=1e-5, atol=tolerance)
    assert bool((buffer[:, 0] == 7).all()) and bool((buffer[:, -2:] == 7).all())

    even = cin + cin % 2
    low = torch.zeros(n_in, even, dtype=torch.bfloat16)
    low[:, :cin] = x.bfloat16()
    low_kept = None if kept is None else kept.bfloat16()
    packed = tensors.pack(weight, torch.bfloat16, isa=isa)
    out = torch.empty(n_out, cout, dtype=torch.bfloat16)
    tensors.conv(low, table, packed, out, cin, shift, low_kept, relu, isa=isa)
    # The definition on rounded inputs; the result is rounded by up to 2**-8 of itself.
    exact = reference(low[:, :cin].float(), table, weight.bfloat16().float())
    exact = exact + sum(part.double() for part in (shift, low_kept) if part is not None)
    exact = exact.clamp(min=0) if relu else exact
    torch.testing.assert_close(out.double(), exact, rtol=2**-8, atol=tolerance)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(isas()), st.integers(1, 700), WIDTHS, WIDTHS, st.sampled_from([1, 8, 27]))
def test_weight_gradient_equals_the_definition(
    isa: int, rows: int, cin: int, cout: int, offsets: int
) -> None:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, cin, generator=generator)
    dy = torch.randn(rows + 5, cout, generator=generator)
    table = torch.randint(-1, rows, (offsets, rows + 5), generator=generator, dtype=torch.int32)
    expected = []
    for source in table.long():
        there = source >= 0
        expected.append(x.double()[source[there]].T @ dy.double()[there])
    grad = tensors.grad_weight(x, dy, table, offsets, isa=isa)
    torch.testing.assert_close(grad.double(), torch.stack(expected), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("widths", [(3, 16), (20, 7), (48, 96)])
def test_module_equals_the_torch_backend(
    kernel_size: int, stride: int, widths: tuple[int, int]
) -> None:
    """Outputs and all gradients, through a convolution and a transposed one."""
    torch.manual_seed(0)
    cin, cout = widths
    down = SparseConv3d(cin, cout, kernel_size, stride, bias=True)
    up = SparseConv3d(cout, cin, kernel_size, stride, transposed=True)
    parameters = [*down.parameters(), *up.parameters()]
    results = []
    for backend in ("torch", "native"):
        x = random_grid(cin, dtype=torch.float32, backend=backend)
        feats = x.feats.requires_grad_()
        out = up(down(x)).feats
        grads = torch.autograd.grad(out.square().mean(), [feats, *parameters])
        results.append([out.detach(), *grads])
    for plain, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)


def test_same_bits_for_any_number_of_threads() -> None:
    torch.manual_seed(0)
    keys = random_voxels(30000, 20)
    x = SparseTensor(packing.unpack(keys), torch.randn(len(keys), 24))
    conv = SparseConv3d(24, 40, bias=True)
    results = []
    for count in (1, 2, 5):
        with threads(count):
            feats = x.feats.clone().requires_grad_()
            out = conv(SparseTensor(x.coords, feats, backend="native")).feats
            grads = torch.autograd.grad(out.square().sum(), [feats, conv.weight])
            results.append([out, *grads])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_rows_outside_the_input_count_as_absent() -> None:
    """A corrupt table cannot make the library read outside the input."""
    x, weight = torch.ones(4, 8), torch.ones(2, 8, 5)
    table = torch.tensor([[0, 1, 4, -1], [2**31 - 1, -(2**31), 1 << 20, 3]], dtype=torch.int32)
    out = tensors.conv(x, table, tensors.pack(weight), torch.empty(4, 5), 8)
    assert out[:, 0].tolist() == [8.0, 8.0, 0.0, 8.0]
    grad = tensors.grad_weight(x, torch.ones(4, 5), table, 2)
    assert grad[:, 0, 0].tolist() == [2.0, 1.0]


def test_bad_arguments_are_refused() -> None:
    x, weight = torch.ones(4, 8), torch.ones(1, 8, 5)
    packed = tensors.pack(weight)
    with pytest.raises(InputError, match="refused"):  # rows differ without a table
        tensors.conv(x, None, packed, torch.empty(5, 5), 8)
    with pytest.raises(InputError, match="9 channels of rows that hold 8"):
        tensors.conv(x, None, packed, torch.empty(4, 5), 9)
    odd = torch.ones(4, 7, dtype=torch.bfloat16)
    with pytest.raises(InputError, match="refused"):
        low = tensors.pack(torch.ones(1, 7, 5), torch.bfloat16)
        tensors.conv(odd, None, low, torch.empty(4, 5), 7)
    with pytest.raises(InputError, match="do not belong"):
        tensors.conv(x, None, packed, torch.empty(4, 60), 8)
    with pytest.raises(InputError, match="refused"):
        tensors.pack(torch.ones(126, 1, 1))
    keys = torch.zeros(3, dtype=torch.int64)
    for kernel_size, stride in ((0, 1), (6, 1), (3.0, 1), (3, 0), (3, 3), (3, 1.0)):
        with pytest.raises(InputError, match="must be an integer from"):
            tensors.build_table(keys, keys, kernel_size, stride)
    with pytest.raises(InputError, match="do not belong"):
        tensors.conv(x, None, packed.to("meta"), torch.empty(4, 5), 8)
    with pytest.raises(InputError, match="must be dense"):
        tensors.conv(x.to_sparse(), None, packed, torch.empty(4, 5), 8)
    with pytest.raises(InputError, match="float32 on the CPU"):
        SparseConv3d(3, 4).double()(random_grid(3, backend="native"))


def test_auto_takes_the_native_backend_for_float32_only() -> None:
    single = torch.zeros(1, 1)
    assert backends.select("auto", single) is backends.native_backend
    assert backends.select("auto", single.double()) is backends.torch_backend
    with torch.autocast("cpu", torch.bfloat16):
        assert backends.select("auto", single) is backends.torch_backend
    assert backends.select("torch", single) is backends.torch_backend
    assert backends.map_builder("torch", torch.device("cpu")) == MapBuilder()
    assert backends.resolve("auto", torch.device("cpu")) == "native"
    assert backends.resolve("auto", torch.device("meta")) == "torch"
    with pytest.raises(InputError, match="'native' runs float32 on the CPU, not on cuda"):
        backends.resolve("native", torch.device("cuda"))
