# SPDX-License-Identifier: Apache-2.0
"""Sparse convolution against torch's dense conv3d, values and gradients."""

from __future__ import annotations

import pytest
import torch
from grids import dense_weight, random_grid, sample, to_dense
from torch import Tensor
from torch.nn import functional

from pcseg_core.errors import InputError
from pcseg_core.sparse import SparseConv3d, SparseTensor, concatenate, pool


def dense_reference(conv: SparseConv3d, x: SparseTensor, out: SparseTensor) -> Tensor:
    """The same convolution on a dense grid, read at the voxels of `out`."""
    weight = dense_weight(conv.weight, conv.kernel_size)
    before = conv.kernel_size // 2 if conv.kernel_size % 2 else 0
    after = conv.kernel_size - 1 - before
    grid = functional.pad(to_dense(x), (before, after) * 3)
    return sample(functional.conv3d(grid, weight, conv.bias, stride=conv.stride), out)


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_equals_dense_with_gradients(kernel_size: int, stride: int, bias: bool) -> None:
    torch.manual_seed(0)
    x = random_grid(3, backend="torch")
    conv = SparseConv3d(3, 5, kernel_size, stride, bias).double()
    feats = x.feats.requires_grad_()
    out = conv(x)
    expected = dense_reference(conv, x, out)
    torch.testing.assert_close(out.feats, expected)
    cotangent = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, [feats, *conv.parameters()], cotangent)
    given = torch.autograd.grad(out.feats, [feats, *conv.parameters()], cotangent)
    for mine, reference in zip(given, wanted, strict=True):
        torch.testing.assert_close(mine, reference)


def test_stride_two_gives_the_occupied_cells() -> None:
    x = SparseTensor(torch.tensor([[0, -1, 0, 5], [0, 0, 0, 5], [1, 1, 1, 4]]), torch.ones(3, 1))
    out = SparseConv3d(1, 1, 2, 2)(x)
    assert out.stride == 2
    assert out.coords.tolist() == [[0, -1, 0, 2], [0, 0, 0, 2], [1, 0, 0, 2]]


@pytest.mark.parametrize("kernel_size", [2, 3])
def test_transposed_is_the_adjoint(kernel_size: int) -> None:
    """<conv(x), y> = <x, transposed(y)> with the weights of each offset transposed."""
    torch.manual_seed(0)
    x = random_grid(3, backend="torch")
    down = SparseConv3d(3, 4, kernel_size, 2).double()
    up = SparseConv3d(4, 3, kernel_size, 2, transposed=True).double()
    up.weight.data = down.weight.data.transpose(1, 2).contiguous()
    coarse = down(x)
    y = coarse.replace(torch.randn_like(coarse.feats))
    back = up(y)
    assert back.stride == 1 and back.cache is x.cache
    torch.testing.assert_close((coarse.feats * y.feats).sum(), (x.feats * back.feats).sum())


def test_transposed_equals_dense() -> None:
    torch.manual_seed(0)
    x = random_grid(2, backend="torch")
    up = SparseConv3d(4, 3, 2, 2, bias=True, transposed=True).double()
    coarse = SparseConv3d(2, 4, 2, 2).double()(x)
    out = up(coarse)
    weight = dense_weight(up.weight, 2).transpose(0, 1)
    dense = functional.conv_transpose3d(to_dense(coarse), weight, up.bias, stride=2)
    torch.testing.assert_close(out.feats, sample(dense, x))


def test_gradcheck() -> None:
    x = random_grid(2, batch=1, density=0.05, backend="torch")
    conv = SparseConv3d(2, 2, 3, bias=True).double()

    def run(feats: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        parameters = {"weight": weight, "bias": bias}
        return torch.func.functional_call(conv, parameters, (x.replace(feats),)).feats

    assert torch.autograd.gradcheck(run, (x.feats.requires_grad_(), conv.weight, conv.bias))


def test_sweeps_of_a_batch_do_not_mix() -> None:
    torch.manual_seed(0)
    conv = SparseConv3d(3, 4, 5).double()
    both = random_grid(3, batch=2, backend="torch")
    together = conv(both)
    for index in range(2):
        rows = both.coords[:, 0] == index
        coords = both.coords[rows].clone()
        coords[:, 0] = 0
        alone = conv(SparseTensor(coords, both.feats[rows], backend="torch"))
        torch.testing.assert_close(alone.feats, together.feats[rows])


def test_neighbors_at_the_limits_of_the_coordinates() -> None:
    """Keys at the edge of a field must not meet the neighboring field."""
    edge = 131069
    corners = [
        [b, x, y, z]
        for b in (0, 511)
        for x in (-edge, edge)
        for y in (-edge, edge)
        for z in (-edge, edge)
    ]
    x = SparseTensor(torch.tensor(corners), torch.ones(len(corners), 1))
    for stride in (1, 2, 4, 8, 16):
        kernel_map = x.cache.kernel_map(stride, 5 if stride == 1 else 3, 1)
        assert int((kernel_map.table >= 0).sum()) == len(corners)


def test_pool_averages_the_occupied_cells() -> None:
    coords = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 1], [0, 4, 0, 0]])
    pooled = pool(SparseTensor(coords, torch.tensor([[1.0], [3.0], [7.0]])), 4)
    assert pooled.coords.tolist() == [[0, 0, 0, 0], [0, 1, 0, 0]]
    assert pooled.feats.tolist() == [[2.0], [7.0]]


def test_autocast_runs_in_lower_precision() -> None:
    x = random_grid(16, dtype=torch.float32, backend="torch")
    conv = SparseConv3d(16, 16)
    full = conv(x).feats
    with torch.autocast("cpu", torch.bfloat16):
        low = conv(x).feats
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), full, rtol=0.05, atol=0.05)


def test_bad_use_is_refused() -> None:
    x = random_grid(3, dtype=torch.float32)
    with pytest.raises(InputError, match="expected 4 channels, got 3"):
        SparseConv3d(4, 5)(x)
    with pytest.raises(InputError, match="no finer grid"):
        SparseConv3d(3, 5, 2, 2, transposed=True)(x)
    with pytest.raises(InputError, match="kernel 4"):
        SparseConv3d(3, 5, 4)
    with pytest.raises(InputError, match="not on the same voxels"):
        concatenate(x, random_grid(3, seed=1, dtype=torch.float32))
