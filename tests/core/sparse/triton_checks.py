# SPDX-License-Identifier: Apache-2.0
"""Triton's kernels in its interpreter; run by `test_triton.py` with TRITON_INTERPRET=1.

Errors are relative, |given - expected| / |expected|: float32 below 1e-6; float16, whose inputs and
results are rounded to 2^-11, below 2e-3 for a layer and 5e-3 for a network.
"""

from __future__ import annotations

import pytest
import torch
from grids import dense_weight, random_grid, sample, to_dense
from torch import Tensor, nn
from torch.nn import functional

from pcseg_core.errors import InputError
from pcseg_core.models.inference import compile_inference
from pcseg_core.models.layers import TritonLayer
from pcseg_core.models.minkunet import MinkUNet
from pcseg_core.sparse import SparseConv3d, SparseTensor, backends, maps
from pcseg_core.sparse.backends import torch_backend, triton_backend
from pcseg_core.sparse.maps import KernelMap

TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3}
# cin, cout, kernel, stride: ragged widths, every kernel, both strides.
LAYERS = [(3, 5, 3, 1), (16, 24, 2, 2), (33, 17, 3, 2), (1, 1, 2, 1), (70, 4, 1, 2), (2, 40, 1, 1)]


def error(given: Tensor, expected: Tensor) -> float:
    assert given.shape == expected.shape
    given, expected = given.detach().double(), expected.detach().double()
    return float((given - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("cin", "cout", "kernel_size", "stride"), LAYERS)
def test_values_and_gradients(
    cin: int, cout: int, kernel_size: int, stride: int, dtype: torch.dtype
) -> None:
    """There and back by a transposed convolution, against float64 on the torch backend."""
    torch.manual_seed(0)
    there = SparseConv3d(cin, cout, kernel_size, stride, bias=True)
    back = SparseConv3d(cout, cin, kernel_size, stride, transposed=True)
    results = []
    for backend, used in (("torch", torch.float64), ("triton", dtype)):
        x = random_grid(cin, batch=1, density=0.15, dtype=used, backend=backend)
        feats = x.feats.requires_grad_()
        layers = there.to(used), back.to(used)
        out = layers[1](layers[0](x)).feats
        leaves = [feats, *layers[0].parameters(), *layers[1].parameters()]
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for expected, given in zip(*results, strict=True):
        assert given.dtype == dtype and error(given, expected) < TOLERANCE[dtype]


def test_equals_dense_convolution() -> None:
    torch.manual_seed(0)
    x = random_grid(4, dtype=torch.float32, backend="triton")
    conv = SparseConv3d(4, 8, 3, bias=True)
    dense = functional.pad(to_dense(x), (1,) * 6)
    expected = sample(functional.conv3d(dense, dense_weight(conv.weight, 3), conv.bias), x)
    assert error(conv(x).feats, expected) < 1e-6


@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65])
def test_ragged_numbers_of_rows(rows: int) -> None:
    """Also rows without any neighbor, and sorted rows."""
    draw = torch.Generator().manual_seed(rows)
    permuted = [torch.randperm(70, generator=draw)[:rows] for _ in range(27)]
    table = torch.stack(permuted).to(torch.int32)
    table[torch.rand(27, rows, generator=draw) < 0.8] = -1
    table[:, rows // 2 :: 7] = -1
    feats = torch.randn(70, 6, generator=draw)
    weight, bias = torch.randn(27, 6, 10, generator=draw), torch.randn(10, generator=draw)
    for least in (0, 1024):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(triton_backend, "_MIN_SORTED", least)
            kernel_map = KernelMap(table, 70, 3, 2, maps.invert_table)
            leaves = [t.clone().requires_grad_() for t in (feats, weight, bias)]
            out = triton_backend.conv(*leaves, kernel_map)
            wanted = [t.clone().requires_grad_() for t in (feats, weight, bias)]
            expected = torch_backend.conv(*wanted, kernel_map)
        assert out.shape == (rows, 10)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
        given = torch.autograd.grad(out.square().sum(), leaves)
        for mine, reference in zip(
            given, torch.autograd.grad(expected.square().sum(), wanted), strict=True
        ):
            torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-4)


def test_no_input_rows() -> None:
    table = torch.full((8, 5), -1, dtype=torch.int32)
    kernel_map = KernelMap(table, 0, 2, 2, maps.invert_table)
    leaves = [torch.zeros(0, 3).requires_grad_(), torch.ones(8, 3, 4).requires_grad_()]
    out = triton_backend.conv(*leaves, torch.ones(4), kernel_map)
    assert torch.equal(out, torch.ones(5, 4))
    assert [g.abs().sum() for g in torch.autograd.grad(out.sum(), leaves)] == [0, 0]


def test_weight_gradient_in_several_shares() -> None:
    """Rows of several programs are added in the same order each time."""
    draw = torch.Generator().manual_seed(0)
    rows = 2500
    table = torch.randint(-1, rows, (1, rows), generator=draw, dtype=torch.int32)
    feats = torch.randn(rows, 3, generator=draw)
    grad = torch.randn(rows, 5, generator=draw)
    kernel_map = KernelMap(table, rows, 1, 2, maps.invert_table)
    given = triton_backend.grad_of_weight(feats, grad, kernel_map)
    there = table[0] >= 0
    expected = feats[table[0][there].long()].T @ grad[there]
    assert error(given[0], expected) < 1e-5
    assert torch.equal(given, triton_backend.grad_of_weight(feats, grad, kernel_map))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_fused_layer_between_slices(dtype: torch.dtype) -> None:
    """Bias, residual and rectifier; input and output are columns, the result on the residual."""
    x = random_grid(1, batch=1, dtype=dtype, backend="triton")
    kernel_map = x.cache.kernel_map(1, 3, 1)
    draw = torch.Generator().manual_seed(0)
    wide = torch.randn(len(x), 40, generator=draw).to(dtype)
    kept = wide.clone()
    weight, bias = torch.randn(27, 16, 20, generator=draw), torch.randn(20, generator=draw)
    scale = torch.rand(20, generator=draw) + 0.5
    layer = TritonLayer.of(weight, bias, dtype, scale)
    layer(wide[:, :16], kernel_map, wide[:, 18:38], residual=wide[:, 18:38])
    products = torch_backend.conv(
        kept[:, :16].double(), (weight * scale).double(), None, kernel_map
    )
    expected = (products + bias + kept[:, 18:38]).clamp(min=0)
    assert error(wide[:, 18:38], expected) < TOLERANCE[dtype]
    others = [*range(18), 38, 39]
    assert torch.equal(wide[:, others], kept[:, others])


def test_float16_saturates() -> None:
    feats = torch.full((1, 16), 60000.0, dtype=torch.float16)
    kernel_map = KernelMap(torch.zeros(1, 1, dtype=torch.int32), 1, 1, 2, maps.invert_table)
    weight = torch.ones(1, 16, 2, dtype=torch.float16)
    weight[:, :, 1] = -1
    assert triton_backend.convolve(feats, weight, kernel_map).tolist() == [[65504.0, -65504.0]]


def test_autocast() -> None:
    x = random_grid(8, batch=1, dtype=torch.float32, backend="triton")
    conv = SparseConv3d(8, 8, bias=True)
    full = conv(x).feats
    with torch.autocast("cpu", torch.float16):
        low = conv(x).feats
    assert low.dtype == torch.float16 and error(low, full) < 2e-3
    low.float().sum().backward()
    assert conv.weight.grad is not None and conv.weight.grad.dtype == torch.float32


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-5), ("fp16", 5e-3)])
def test_network_equals_the_module(precision: str, limit: float) -> None:
    torch.manual_seed(0)
    net = MinkUNet(3, 7, 14, 0.25).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    fast = compile_inference(net, precision, "triton")  # type: ignore[arg-type]
    head = fast.with_head(net.classifier.weight.detach().t() * 2, net.classifier.bias.detach() * 2)
    one = SparseTensor(torch.zeros(1, 4, dtype=torch.int64), torch.ones(1, 3))
    for x in (random_grid(3, 1, 0.04, dtype=torch.float32), one):
        plain = SparseTensor(x.coords, x.feats, backend="torch")
        mine = SparseTensor(x.coords, x.feats, backend="triton")
        with torch.no_grad():
            expected, features = net(plain).feats, net.features(plain)
        given = fast(mine).feats
        assert given.dtype == torch.float32 and error(given, expected) < limit
        if x is one:
            assert error(fast.features(mine), features) < limit
            assert error(head(mine), 2 * expected) < limit


def test_choice_and_refusal() -> None:
    cpu, x = torch.device("cpu"), torch.zeros(2, 3)
    assert backends.resolve("triton", cpu) == "triton"
    assert backends.select("triton", x) is triton_backend
    assert backends.select("auto", x) is not triton_backend
    with pytest.raises(InputError, match="float32, float16 and bfloat16"):
        backends.select("triton", x.double())
    kernel_map = KernelMap(torch.zeros(1, 2, dtype=torch.int32), 2, 1, 2, maps.invert_table)
    with pytest.raises(InputError, match="dtype and channels must agree"):
        triton_backend.convolve(x, torch.zeros(1, 3, 4, dtype=torch.float16), kernel_map)
    with pytest.raises(InputError, match="dtype and channels must agree"):
        triton_backend.convolve(x, torch.zeros(1, 4, 4), kernel_map)
