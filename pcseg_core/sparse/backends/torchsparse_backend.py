# SPDX-License-Identifier: Apache-2.0
"""Sparse convolution on CUDA through the kernels of torchsparse 2.1.

Uses its implicit-GEMM kernels on our own neighbor tables. The offsets keep the order of
`maps.kernel_offsets` and weights need no reordering (in torchsparse's own tables x varies fastest
for odd kernels). Arguments of the kernels, from the sources of torchsparse 2.1 (Function
`ImplicitGEMMConvolutionFuntion`):

* forward: features, weights (K, in, out), table (rows, K) int32 with -1 for absent, its rows
  padded to a multiple of 128, then the number of output rows and channels;
* gradient of the input: the same call with transposed weights and the inverse table;
* gradient of the weights: output gradient, features, inverse table and a split of 32; it returns
  (K * out, in).

This adapter is tested against a stand-in for the kernels, not on a GPU.
"""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pcseg_core.sparse.backends import torch_backend
from pcseg_core.sparse.maps import KernelMap

_ROWS = 128  # rows per tile of torchsparse's kernels
_SPLIT = 32
_KERNELS = ("conv_forward_implicit_gemm_cuda", "conv_backward_wgrad_implicit_gemm_cuda")


@cache
def load() -> ModuleType | str:
    """torchsparse, or one line that says why it cannot be used."""
    try:
        module = importlib.import_module("torchsparse")
        backend = importlib.import_module("torchsparse.backend")
        importlib.import_module("torchsparse.backends")
    except ImportError as error:
        return f"{error}; build torchsparse 2.1 from source for faster CUDA"
    missing = [name for name in _KERNELS if not hasattr(backend, name)]
    if missing:
        return f"torchsparse has no {missing[0]}; install 2.1, built with CUDA"
    return module


def can_run(feats: Tensor) -> bool:
    """float32 and float16 on CUDA."""
    return feats.device.type == "cuda" and feats.dtype in (torch.float32, torch.float16)


def conv(feats: Tensor, weight: Tensor, bias: Tensor | None, kernel_map: KernelMap) -> Tensor:
    """Differentiable convolution; see `backends.Backend.conv`."""
    if len(weight) == 1 and kernel_map.stride == 1:
        return torch_backend.conv(feats, weight, bias, kernel_map)
    dtype = torch_backend.autocast_dtype(feats.device.type)
    if dtype == torch.float16:
        feats, weight = feats.to(dtype), weight.to(dtype)
    out = _Conv.apply(feats, weight, kernel_map)
    assert isinstance(out, Tensor)
    return out if bias is None else out + bias.to(out.dtype)


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feats: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
        ctx.save_for_backward(feats, weight)
        ctx.kernel_map = kernel_map
        return _gather_multiply(feats, weight, kernel_map)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        feats, weight = ctx.saved_tensors
        inverse: KernelMap = ctx.kernel_map.inverse
        grad = grad.to(weight.dtype).contiguous()
        grad_feats = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_feats = _gather_multiply(grad, weight.transpose(1, 2), inverse)
        if ctx.needs_input_grad[1]:
            kernels = _kernels()
            product = kernels.conv_backward_wgrad_implicit_gemm_cuda(
                grad, feats.contiguous(), _padded_table(inverse), _SPLIT, *_precision()
            )
            offsets, cin, cout = weight.shape
            grad_weight = product.reshape(offsets, cout, cin).transpose(1, 2).contiguous()
        return grad_feats, grad_weight, None


def _gather_multiply(feats: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
    out = _kernels().conv_forward_implicit_gemm_cuda(
        feats.contiguous(),
        weight.contiguous(),
        _padded_table(kernel_map),
        kernel_map.n_out,
        weight.shape[2],
        *_precision(),
    )
    result: Tensor = out.to(weight.dtype)
    return result


def _padded_table(kernel_map: KernelMap) -> Tensor:
    """The table in the layout of torchsparse, (n_out rounded up to tiles, K), cached."""
    table = kernel_map.derived.get("torchsparse")
    if table is None:
        rows = -(-kernel_map.n_out // _ROWS) * _ROWS
        table = kernel_map.table.new_full((rows, len(kernel_map.table)), -1)
        table[: kernel_map.n_out] = kernel_map.table.t()
        kernel_map.derived["torchsparse"] = table
    return table


def _kernels() -> ModuleType:
    return importlib.import_module("torchsparse.backend")


def _precision() -> tuple[bool, bool]:
    """Switches of torchsparse for TF32 and half precision tensor cores."""
    switches = importlib.import_module("torchsparse.backends")
    return bool(switches.allow_tf32), bool(switches.allow_fp16)
