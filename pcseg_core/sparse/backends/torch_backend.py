# SPDX-License-Identifier: Apache-2.0
"""Sparse convolution in plain PyTorch: the reference, on CPU and CUDA.

For each kernel offset: gather the input rows, multiply, add to the output rows. An offset pairs an
output row with at most one input row: sums do not race, and the gradient of a gather is a gather
along the inverse pairs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pcseg_core.sparse.maps import KernelMap


def conv(feats: Tensor, weight: Tensor, bias: Tensor | None, kernel_map: KernelMap) -> Tensor:
    """Differentiable convolution; see `backends.Backend.conv`."""
    if len(weight) == 1 and kernel_map.stride == 1:
        return torch.mm(feats, weight[0]) if bias is None else torch.addmm(bias, feats, weight[0])
    dtype = autocast_dtype(feats.device.type)
    if dtype is not None:
        feats, weight = feats.to(dtype), weight.to(dtype)
    out = _Conv.apply(feats, weight, kernel_map)
    result: Tensor = out if bias is None else out + bias.to(out.dtype)
    return result


def autocast_dtype(device: str) -> torch.dtype | None:
    """The dtype of autocast on this kind of device, None outside autocast."""
    if hasattr(torch, "get_autocast_dtype"):  # torch >= 2.4
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    if device == "cuda":
        return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None
    return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feats: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
        ctx.save_for_backward(feats, weight)
        ctx.kernel_map = kernel_map
        rows_in, rows_out, counts = kernel_map.pairs
        center = _center(kernel_map)
        return _accumulate(feats, weight, rows_in, rows_out, counts, kernel_map.n_out, center)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        feats, weight = ctx.saved_tensors
        kernel_map = ctx.kernel_map
        rows_in, rows_out, counts = kernel_map.pairs
        grad = grad.contiguous()
        grad_feats = grad_weight = None
        center = _center(kernel_map)
        if ctx.needs_input_grad[0]:
            transposed = weight.transpose(1, 2)
            grad_feats = _accumulate(
                grad, transposed, rows_out, rows_in, counts, kernel_map.n_in, center
            )
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(feats, grad, weight, rows_in, rows_out, counts, center)
        return grad_feats, grad_weight, None


def _center(kernel_map: KernelMap) -> int | None:
    """The offset that maps every row to itself and needs no gather; None without one."""
    return len(kernel_map.table) // 2 if kernel_map.is_symmetric else None


def _accumulate(
    feats: Tensor,
    weight: Tensor,
    source: Tensor,
    target: Tensor,
    counts: list[int],
    n_out: int,
    center: int | None,
) -> Tensor:
    """out[target] += feats[source] @ weight[k], offset by offset."""
    if center is None:
        out = feats.new_zeros(n_out, weight.shape[2])
    else:
        out = torch.mm(feats, weight[center])
    longest = max((n for k, n in enumerate(counts) if k != center), default=0)
    gathered = feats.new_empty(longest, feats.shape[1])
    product = feats.new_empty(longest, weight.shape[2])
    start = 0
    for k, count in enumerate(counts):
        if count and k != center:
            rows = slice(start, start + count)
            torch.index_select(feats, 0, source[rows], out=gathered[:count])
            torch.mm(gathered[:count], weight[k], out=product[:count])
            out.index_add_(0, target[rows], product[:count])
        start += count
    return out


def _weight_gradient(
    feats: Tensor,
    grad: Tensor,
    weight: Tensor,
    rows_in: Tensor,
    rows_out: Tensor,
    counts: list[int],
    center: int | None,
) -> Tensor:
    """grad_weight[k] = feats[rows_in].T @ grad[rows_out] over the pairs of offset k."""
    out = torch.zeros_like(weight)
    longest = max((n for k, n in enumerate(counts) if k != center), default=0)
    left = feats.new_empty(longest, feats.shape[1])
    right = grad.new_empty(longest, grad.shape[1])
    start = 0
    for k, count in enumerate(counts):
        rows = slice(start, start + count)
        start += count
        if k == center:
            torch.mm(feats.t(), grad, out=out[k])
        elif count:
            torch.index_select(feats, 0, rows_in[rows], out=left[:count])
            torch.index_select(grad, 0, rows_out[rows], out=right[:count])
            torch.mm(left[:count].t(), right[:count], out=out[k])
    return out
