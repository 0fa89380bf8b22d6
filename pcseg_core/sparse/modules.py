# SPDX-License-Identifier: Apache-2.0
"""Layers on sparse tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pcseg_core.errors import InputError
from pcseg_core.sparse import backends
from pcseg_core.sparse.maps import KERNEL_SIZES, KernelMap
from pcseg_core.sparse.tensor import SparseTensor


class SparseConv3d(nn.Module):
    """Sparse convolution.

    With stride 1 the output voxels are the input voxels (submanifold). With stride 2 they are the
    occupied cells of the doubled grid. A transposed convolution of stride 2 returns to the voxels
    of the finer grid.

    Attributes:
        weight: (K, in_channels, out_channels), offsets ordered lexicographically over
            (dx, dy, dz), dz fastest; see `maps.kernel_offsets`.
        bias: (out_channels,) or None.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        bias: bool = False,
        transposed: bool = False,
    ) -> None:
        super().__init__()
        if kernel_size not in KERNEL_SIZES or stride not in (1, 2):
            raise InputError(
                f"sparse convolution of kernel {kernel_size}, stride {stride}: kernel must be one "
                f"of {KERNEL_SIZES}, stride 1 or 2"
            )
        if in_channels < 1 or out_channels < 1:
            raise InputError(
                f"sparse convolution: widths must be positive, got {in_channels}, {out_channels}"
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.transposed = kernel_size, stride, transposed
        self.weight = nn.Parameter(torch.empty(kernel_size**3, in_channels, out_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform within 1/sqrt(fan in), as in `torch.nn.Conv3d`."""
        # On surfaces about a third of the neighbors exist; batch norm compensates.
        bound = 1 / math.sqrt(self.in_channels * len(self.weight))
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def kernel_map(self, x: SparseTensor) -> tuple[KernelMap, int]:
        """The kernel map for an input and the stride of the output."""
        if not self.transposed:
            stride = x.stride * self.stride
            return x.cache.kernel_map(x.stride, self.kernel_size, self.stride), stride
        if x.stride % self.stride:
            raise InputError(
                f"transposed convolution of stride {self.stride} on a tensor of stride "
                f"{x.stride}: no finer grid to return to"
            )
        stride = x.stride // self.stride
        return x.cache.kernel_map(stride, self.kernel_size, self.stride).inverse, stride

    def forward(self, x: SparseTensor) -> SparseTensor:
        if x.feats.shape[1] != self.in_channels:
            raise InputError(
                f"sparse convolution: expected {self.in_channels} channels, got {x.feats.shape[1]}"
            )
        kernel_map, stride = self.kernel_map(x)
        backend = backends.select(x.cache.backend, x.feats)
        feats = backend.conv(x.feats, self.weight, self.bias, kernel_map)
        return SparseTensor.of(feats, stride, x.cache)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        text += f", stride={self.stride}" if self.stride != 1 else ""
        text += ", bias=True" if self.bias is not None else ""
        return text + (", transposed=True" if self.transposed else "")


class BatchNorm(nn.BatchNorm1d):
    """Batch normalization over all voxels of the batch."""

    def forward(self, x: SparseTensor) -> SparseTensor:  # type: ignore[override]
        return x.replace(self.normalize(x.feats))

    def normalize(self, feats: Tensor) -> Tensor:
        """Normalize (M, C) features."""
        normalized: Tensor = super().forward(feats)
        return normalized


class ReLU(nn.ReLU):
    """Rectifier on the features."""

    def forward(self, x: SparseTensor) -> SparseTensor:  # type: ignore[override]
        return x.replace(super().forward(x.feats))


def pool(x: SparseTensor, stride: int = 2) -> SparseTensor:
    """Mean features of the voxels in each cell of a grid `stride` times coarser."""
    while stride > 1:
        if stride % 2:
            raise InputError("pool: stride must be a power of two")
        kernel_map = x.cache.kernel_map(x.stride, 2, 2)
        rows_in, rows_out, _ = kernel_map.pairs
        total = x.feats.new_zeros(kernel_map.n_out, x.feats.shape[1] + 1)
        ones = x.feats.new_ones(len(x), 1)
        total = total.index_add(0, rows_out, torch.cat([x.feats, ones], 1).index_select(0, rows_in))
        x = SparseTensor.of(total[:, :-1] / total[:, -1:], x.stride * 2, x.cache)
        stride //= 2
    return x


def concatenate(a: SparseTensor, b: SparseTensor) -> SparseTensor:
    """Concatenate the channels of two tensors on the same voxels."""
    if a.stride != b.stride or a.cache is not b.cache:
        raise InputError("concatenate: the tensors are not on the same voxels")
    return a.replace(_cat(a.feats, b.feats))


def _cat(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([a, b], dim=1)
