# SPDX-License-Identifier: Apache-2.0
"""Checks of the arguments of the native library, which reads raw memory."""

from __future__ import annotations

import torch
from torch import Tensor

from pcseg_core.errors import InputError


def require(holds: bool, what: str) -> None:
    """Raise an InputError with the text `what` unless the condition holds."""
    if not holds:
        raise InputError(f"native library: {what}")


def require_int(value: int, name: str, low: int, high: int) -> None:
    """An integer in low..high."""
    require(
        isinstance(value, int) and low <= value <= high,
        f"{name} must be an integer from {low} to {high}, got {value}",
    )


def require_matrix(tensor: Tensor, name: str, dtypes: tuple[torch.dtype, ...]) -> None:
    """A CPU matrix of one of the dtypes; its rows are contiguous and do not overlap."""
    require(tensor.layout == torch.strided, f"{name} must be dense, got {tensor.layout}")
    require(
        tensor.device.type == "cpu"
        and tensor.dtype in dtypes
        and tensor.ndim == 2
        and (tensor.stride(1) == 1 or tensor.shape[1] <= 1)
        and (tensor.stride(0) >= tensor.shape[1] or len(tensor) <= 1),
        f"{name} must be a CPU matrix of {' or '.join(map(str, dtypes))} with contiguous rows, "
        f"got {tensor.dtype} {tuple(tensor.shape)} with strides {tensor.stride()}",
    )


def require_table(table: Tensor) -> None:
    """(K, n_out) int32."""
    require_matrix(table, "the neighbor table", (torch.int32,))
    require(table.is_contiguous(), "the neighbor table must be contiguous")


def require_keys(keys: Tensor) -> None:
    """(M,) int64."""
    require(
        keys.ndim == 1 and keys.dtype == torch.int64 and keys.device.type == "cpu",
        f"keys must be a CPU vector of int64, got {keys.dtype} {tuple(keys.shape)}",
    )


def require_vector(tensor: Tensor | None, name: str, size: int) -> None:
    """(size,) float32, or None."""
    require(
        tensor is None
        or (
            tensor.shape == (size,)
            and tensor.dtype == torch.float32
            and tensor.device.type == "cpu"
            and tensor.is_contiguous()
        ),
        f"{name} must be a contiguous CPU vector of {size} float32",
    )
