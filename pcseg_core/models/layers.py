# SPDX-License-Identifier: Apache-2.0
"""Layers of a network for inference: convolution, bias, residual and rectifier, per backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pcseg_core.native import tensors as native
from pcseg_core.native.tensors import Integers
from pcseg_core.sparse.backends import native_backend, triton_backend
from pcseg_core.sparse.maps import KernelMap


class Layer(Protocol):
    """A convolution with its batch norm folded in."""

    @property
    def cin(self) -> int: ...

    @property
    def cout(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def __call__(
        self,
        x: Tensor,
        kernel_map: KernelMap | None,
        out: Tensor,
        residual: Tensor | None = None,
        relu: bool = True,
    ) -> Tensor:
        """Convolve, add bias and residual, rectify.

        Args:
            x: (n_in, cin) features, any step between rows.
            kernel_map: of the convolution; None for 1x1x1.
            out: (n_out, cout) for the result; may share memory with `residual`, and with `x` for
                1x1x1.
            residual: (n_out, cout) or None.
            relu: replace negative results by zero.

        Returns:
            The result: `out`, or for 1x1x1 possibly another tensor.
        """
        ...


# weight (K, cin, cout), bias (cout,), factor on the output channels (cout,) or None.
MakeLayer = Callable[[Tensor, Tensor, "Tensor | None"], Layer]


@dataclass(frozen=True, eq=False)
class NativeLayer:
    """A layer in the layout of the native library, on the CPU.

    Attributes:
        packed: weights from `native.pack`.
        bias: (cout,) float32.
        integers: scales, where features or results are uint8.
    """

    packed: Tensor
    bias: Tensor
    cin: int
    cout: int
    integers: Integers | None = None

    @classmethod
    def of(
        cls, weight: Tensor, bias: Tensor, dtype: torch.dtype, scale: Tensor | None = None
    ) -> NativeLayer:
        """Pack weights (K, cin, cout), times scale (cout,), and bias (cout,)."""
        weight = weight.detach().float().cpu()
        scale = None if scale is None else scale.detach().float().cpu()
        packed = native.pack(weight, dtype, scale=scale)
        copy = bias.detach().to("cpu", torch.float32, copy=True)
        return cls(packed, copy, *weight.shape[1:])

    @property
    def device(self) -> torch.device:
        return self.bias.device

    def __call__(
        self,
        x: Tensor,
        kernel_map: KernelMap | None,
        out: Tensor,
        residual: Tensor | None = None,
        relu: bool = True,
    ) -> Tensor:
        table = listed = None
        if kernel_map is not None:
            table, listed = kernel_map.table, native_backend.pairs(kernel_map, x.dtype)
        what = x, table, self.packed, out, self.cin, self.bias, residual, relu
        return native.conv(*what, pairs=listed, integers=self.integers)


@dataclass(frozen=True, eq=False)
class TritonLayer:
    """A layer in the precision of the network, on a GPU.

    Attributes:
        weight: (K, cin, cout).
        bias: (cout,) float32.
    """

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(
        cls, weight: Tensor, bias: Tensor, dtype: torch.dtype, scale: Tensor | None = None
    ) -> TritonLayer:
        """Convert weights (K, cin, cout), times scale (cout,), and bias (cout,)."""
        weight = weight.detach().float()
        if scale is not None:
            weight = weight * scale.detach().float()
        copy = bias.detach().to(torch.float32, copy=True)
        return cls(weight.to(dtype, copy=True).contiguous(), copy)

    @property
    def cin(self) -> int:
        return self.weight.shape[1]

    @property
    def cout(self) -> int:
        return self.weight.shape[2]

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def __call__(
        self,
        x: Tensor,
        kernel_map: KernelMap | None,
        out: Tensor,
        residual: Tensor | None = None,
        relu: bool = True,
    ) -> Tensor:
        if kernel_map is None:
            return self._multiply(x, out.dtype, residual, relu)
        return triton_backend.convolve(x, self.weight, kernel_map, out, self.bias, residual, relu)

    def _multiply(
        self, x: Tensor, dtype: torch.dtype, residual: Tensor | None, relu: bool
    ) -> Tensor:
        """The 1x1x1 convolution: a plain product, never in place."""
        weight = self.weight[0].to(dtype)
        result = torch.addmm(self.bias.to(dtype), x.to(dtype), weight)
        result = result if residual is None else result + residual
        return result.relu_() if relu else result
