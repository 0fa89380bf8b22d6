# SPDX-License-Identifier: Apache-2.0
"""Sparse convolution through the native CPU library, differentiable, float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pcseg_core.native import tensors as native
from pcseg_core.sparse.backends import torch_backend
from pcseg_core.sparse.maps import KernelMap, MapBuilder

MAP_BUILDER = MapBuilder(native.coarsen, native.build_table, native.invert_table)


def conv(feats: Tensor, weight: Tensor, bias: Tensor | None, kernel_map: KernelMap) -> Tensor:
    """Differentiable convolution; see `backends.Backend.conv`."""
    out = _Conv.apply(feats, weight, bias, kernel_map)
    assert isinstance(out, Tensor)
    return out


def can_run(feats: Tensor) -> bool:
    """float32 on the CPU, outside autocast."""
    on_cpu = feats.device.type == "cpu" and feats.dtype == torch.float32
    return on_cpu and torch_backend.autocast_dtype("cpu") is None


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, feats: Tensor, weight: Tensor, bias: Tensor | None, kernel_map: KernelMap
    ) -> Tensor:
        ctx.save_for_backward(feats, weight)
        ctx.kernel_map = kernel_map
        feats = feats.contiguous()
        out = feats.new_empty(kernel_map.n_out, weight.shape[2])
        packed = native.pack(weight)
        table, listed = _table(kernel_map), pairs(kernel_map)
        return native.conv(feats, table, packed, out, feats.shape[1], bias, pairs=listed)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        feats, weight = ctx.saved_tensors
        kernel_map: KernelMap = ctx.kernel_map
        grad = grad.contiguous()
        grad_feats = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_feats = _grad_feats(grad, weight, kernel_map)
        if ctx.needs_input_grad[1]:
            table, listed = _table(kernel_map), pairs(kernel_map)
            feats = feats.contiguous()
            grad_weight = native.grad_weight(feats, grad, table, len(weight), pairs=listed)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(0)
        return grad_feats, grad_weight, grad_bias, None


def _grad_feats(grad: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
    """The transposed convolution; a symmetric map is its own inverse with flipped offsets."""
    mutual = kernel_map.is_symmetric
    other = kernel_map if mutual else kernel_map.inverse
    packed = native.pack(weight, transpose=True, flip=mutual)
    out = grad.new_empty(kernel_map.n_in, weight.shape[1])
    return native.conv(grad, _table(other), packed, out, grad.shape[1], pairs=pairs(other))


def pairs(kernel_map: KernelMap, dtype: torch.dtype = torch.float32) -> Tensor | None:
    """The pairs of a map for features of one dtype, listed once; None for the 1x1x1 convolution."""
    table = _table(kernel_map)
    if table is None:
        return None
    name = f"native {dtype}"
    if name not in kernel_map.derived:
        kernel_map.derived[name] = native.list_pairs(table, kernel_map.n_in, dtype)
    return kernel_map.derived[name]


def _table(kernel_map: KernelMap) -> Tensor | None:
    """The table; None for the 1x1x1 convolution, which reads the same row."""
    is_identity = kernel_map.kernel_size == 1 and kernel_map.stride == 1
    return None if is_identity else kernel_map.table
